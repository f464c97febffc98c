"""A study: a grid of runs and the question that they are to answer.

study = Study(question="scaling", grid={"model": ("EleutherAI/pythia-70m", "EleutherAI/pythia-410m")}, run={"topk": [100]})
for cell in cells_of(study): print(cell.number, cell.label, cell.spec)
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cwa_engine.spec import RunSpec, parse_spec

# Fields that say which model is loaded and how: cells that have these in common follow each other, so it is loaded once.
LOADED_BY = ("model", "revision", "dtype", "device", "offload")


class Study(BaseModel):
    """What is asked for. Names in `run` and `grid` are fields of `RunSpec`.

    Every value of each entry of `grid` is combined with every value of the others, and each combination is a run. What one
    run can hold (several metrics, k and perturbations) is best given in `run`, for it shares the passes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = ""  # a name of `STUDY_QUESTIONS`; empty for a grid without a question
    name: str = ""  # in the user's words
    run: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]]

    def sha256(self) -> str:
        """Hash of what is asked for; the name is no part of it."""
        return hashlib.sha256(self.model_dump_json(exclude={"name"}).encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    number: int  # 1 for the cell that runs first
    values: Mapping[str, str]  # of the grid, what differs between cells, as texts: {"model": "gpt2", "seed": "1"}
    spec: RunSpec

    @property
    def label(self) -> str:
        """`gpt2, seed 1`."""
        return ", ".join(value if name == "model" else f"{name} {value}" for name, value in self.values.items())


def cells_of(study: Study) -> tuple[Cell, ...]:
    """The runs of a study, in an order that loads each model once. Raises InvalidInput for a spec that makes no sense."""
    names = sorted(study.grid, key=lambda name: LOADED_BY.index(name) if name in LOADED_BY else len(LOADED_BY))
    found = []
    for number, combination in enumerate(itertools.product(*(study.grid[name] for name in names)), start=1):
        values = dict(zip(names, combination, strict=True))
        shown = {name: str(value) for name, value in values.items() if len(study.grid[name]) > 1 or name == "model"}
        found.append(Cell(number, shown, parse_spec({**study.run, **values})))
    return tuple(found)
