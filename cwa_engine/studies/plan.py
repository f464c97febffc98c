"""What a study will cost, before it runs. torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.studies.study import Cell, Study


@dataclass(frozen=True, slots=True)
class CellPlan:
    """A cell, and what it costs."""

    cell: Cell
    passes: int | None  # forward passes over one sequence; a backward pass counts two. None where texts are not counted
    seconds: float | None  # None where no run of this machine tells
    memory_bytes: int | None  # None where the model's size is not known here
    done: bool  # a finished run of the same content is there


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """All cells, in the order in which they run, and where the figures come from."""

    cells: tuple[CellPlan, ...]
    seconds_from: str  # in words: from which runs the time is estimated, or why it is not known
    memory_from: str

    @property
    def passes(self) -> int | None:
        raise NotImplementedError

    @property
    def seconds(self) -> float | None:
        """Of the cells that are not done; None where that of one is not known."""
        raise NotImplementedError


def plan_study(study: Study) -> StudyPlan:
    """What each cell costs, and which are done already. Loads no model and asks no network."""
    raise NotImplementedError
