"""How far a study is: its journal, and what the runner says of runs that have not ended. torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cwa_engine.base.errors import CwaError, NotFound
from cwa_engine.runner import Runner, RunState
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.journal import Submission
from cwa_engine.studies.study import Cell

CellState = Literal["waiting", "queued", "running", "done", "failed", "cancelled"]  # "waiting": not submitted yet
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class CellProgress:
    """A cell and its run."""

    cell: Cell
    state: CellState = "waiting"
    run_id: str = ""
    error: CwaError | None = None  # of a run that failed, or that is gone
    attempt: int = 0  # 1 for the first submission
    reused: bool = False  # whether the run was there before the study

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def progress_of(folder: StudyFolder, runner: Runner) -> tuple[CellProgress, ...]:
    """How far each cell is, in the order of the cells. Nothing is submitted, and nothing written.

    Of a study whose runs are elsewhere only what it wrote down is known: what was not seen to end counts as queued.
    """
    submissions, _ = folder.journal.read()
    open_runs = [each.run_id for each in submissions.values() if each.run_id and not each.ended]
    if folder.where == runner.where:
        states = runner.states(open_runs)
    else:
        states = dict.fromkeys(open_runs, RunState("queued", folder.created))
    return tuple(cell_progress(cell, submissions.get(cell.number), states) for cell in folder.cells)


def cell_progress(cell: Cell, submission: Submission | None, states: Mapping[str, RunState]) -> CellProgress:
    """A cell by its latest submission, and by where runs are that were not seen to end."""
    if submission is None:
        return CellProgress(cell)
    about = {"run_id": submission.run_id, "attempt": submission.attempt, "reused": submission.reused}
    if submission.ended:
        return CellProgress(cell, submission.ended, error=submission.error, **about)  # type: ignore[arg-type]
    if not submission.run_id:  # whether it arrived is known when it is submitted again
        return CellProgress(cell, attempt=submission.attempt)
    state = states.get(submission.run_id)
    if state is None:
        gone = NotFound(
            f"its run {submission.run_id} is not there any more", hint="`cwtool study resume` runs it again"
        )
        return CellProgress(cell, error=gone, **about)  # type: ignore[arg-type]
    return CellProgress(cell, state.name, error=state.error, **about)  # type: ignore[arg-type]
