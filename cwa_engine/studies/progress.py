"""How far a study is. torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cwa_engine.base.errors import CwaError
from cwa_engine.studies.study import Cell

CellState = Literal["waiting", "queued", "running", "done", "failed", "cancelled"]  # "waiting": not submitted yet
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class CellProgress:
    """A cell and its run."""

    cell: Cell
    state: CellState = "waiting"
    run_id: str = ""
    error: CwaError | None = None  # of a run that failed
    attempt: int = 0  # 1 for the first submission
    reused: bool = False  # whether the run was there before the study

    @property
    def ended(self) -> bool:
        return self.state in ENDED
