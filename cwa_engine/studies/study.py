"""A study: a grid of runs and the question that they are to answer.

study = Study(question="scaling", grid={"model": ("EleutherAI/pythia-70m", "EleutherAI/pythia-410m")}, run={"topk": [100]})
for cell in cells_of(study): print(cell.number, cell.label, cell.spec)
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.plain import JsonMap
from cwa_engine.option_file import by_name, named
from cwa_engine.options import OptionField, option_fields
from cwa_engine.spec import RunSpec, parse_spec

# Fields that say which model is loaded and how: cells that have these in common follow each other, so it is loaded once.
LOADED_BY = ("model", "revision", "dtype", "device", "offload")
MOST_CELLS = 5000
MOST_NAME = 200
_NOT_OF_A_STUDY = {"output": "`cwtool study export` writes what a study has found"}


class Study(BaseModel):
    """What is asked for. Names in `run` and `grid` are fields of `RunSpec`, or options as `cwtool run` calls them.

    Every value of each entry of `grid` is combined with every value of the others, and each combination is a run. What one
    run can hold (several metrics, k and perturbations) is best given in `run`, for it shares the passes.

    Raises InvalidInput, with near names, for an option that there is not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = ""  # a name of `STUDY_QUESTIONS`; empty for a grid without a question
    name: str = Field(default="", max_length=MOST_NAME)  # in the user's words
    # Everywhere but in this class it is called "run": in files, hashes and as a keyword. That name is a method of `cwa.Study`.
    shared: dict[str, Any] = Field(default_factory=dict, alias="run")
    grid: Mapping[str, Sequence[Any]]  # kept as tuples

    @field_validator("shared", mode="before")
    @classmethod
    def _run_by_field(cls, given: Any) -> Any:
        return _by_field(given, "run") if isinstance(given, Mapping) else given

    @field_validator("grid", mode="before")
    @classmethod
    def _grid_by_field(cls, given: Any) -> Any:
        return _by_field(given, "grid", several=True) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        if twice := sorted(self.shared.keys() & self.grid.keys()):
            raise InvalidInput(f"'{twice[0]}' is in the grid and in what all runs share", hint="give it once")
        if "model" not in self.shared and "model" not in self.grid:
            raise InvalidInput("no model is given", hint="a study needs models: --models, or model in [grid]")
        cells = math.prod(len(values) for values in self.grid.values())
        if cells > MOST_CELLS:
            raise InvalidInput(
                f"the grid has {cells:,} cells, and a study at most {MOST_CELLS:,}",
                hint="what one run can hold (metrics, k, perturbations) is no dimension: give it in [run]",
            )
        return self

    def sha256(self) -> str:
        """Hash of what is asked for; the name is no part of it."""
        return hashlib.sha256(self.model_dump_json(exclude={"name"}, by_alias=True).encode()).hexdigest()

    def to_plain(self) -> JsonMap:
        """As JSON has it, under the names that `Study` takes."""
        return self.model_dump(mode="json", by_alias=True)


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
    found: list[Cell] = []
    numbers: dict[str, int] = {}
    for number, combination in enumerate(itertools.product(*(study.grid[name] for name in names)), start=1):
        values = dict(zip(names, combination, strict=True))
        shown = {name: _shown(value) for name, value in values.items() if len(study.grid[name]) > 1 or name == "model"}
        shown = shown or {"model": _shown(study.shared["model"])}
        try:
            spec = parse_spec({**study.shared, **values})
        except InvalidInput as error:
            raise InvalidInput(f"{Cell(number, shown, _NO_SPEC).label}: {error.message}", hint=error.hint) from error
        same = numbers.setdefault(spec.sha256(), number)
        if same != number:
            raise InvalidInput(
                f"{Cell(number, shown, spec).label} is in the grid twice, as cells {same} and {number}",
                hint="give each value once",
            )
        found.append(Cell(number, shown, spec))
    return tuple(found)


_NO_SPEC = RunSpec.model_construct()  # of a cell that is only named


def _by_field(given: Mapping[str, Any], part: str, several: bool = False) -> dict[str, Any]:
    """Values by field. In the grid each has a list of values."""
    known = by_name(option_fields(RunSpec))
    found: dict[str, Any] = {}
    for key, value in given.items():
        entry = named(key, known, part) if key != "data_name" else None
        field = entry.field if entry else key
        if field in _NOT_OF_A_STUDY:
            raise InvalidInput(f"{part}: '{key}' is an option of a single run", hint=_NOT_OF_A_STUDY[field])
        if field in found:
            raise InvalidInput(f"{part}: '{key}' is there twice, under two names", hint="leave out one of them")
        found[field] = _values(entry, value, f"{part}: {key}") if several else _value(entry, value)
    return found


def _values(entry: OptionField | None, given: Any, where: str) -> tuple[Any, ...]:
    if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, range)):
        raise InvalidInput(f"{where} is {given!r:.60}", hint="a dimension of the grid has a list of values")
    if not given:
        raise InvalidInput(f"{where} has no values", hint="give some, or leave it out")
    return tuple(_value(entry, value) for value in given)


def _value(entry: OptionField | None, given: Any) -> Any:
    """A value as JSON has it, so that a study reads back as it was: a list as a tuple, a path as a text."""
    if isinstance(given, Iterable) and not isinstance(given, (str, Mapping)):
        return tuple(map(_plain, given))
    given = _plain(given)
    return (given,) if entry and entry.several and given is not None else given


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    """`10`, `grad_x_weight+magnitude` for a list."""
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
