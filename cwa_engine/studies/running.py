"""A study is run: its cells are submitted in order, each once, and waited for. torch-free."""

from __future__ import annotations

from collections.abc import Callable

from cwa_engine.runner import Runner
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress

Say = Callable[[str], None]


def run_study(
    folder: StudyFolder,
    runner: Runner,
    say: Say = lambda text: None,
    *,
    retry: bool = False,
    wait: bool = True,
    show: Callable[[tuple[CellProgress, ...]], None] = lambda progress: None,
) -> tuple[CellProgress, ...]:
    """Submit what is not submitted, wait until all has ended, and give how each cell ended.

    Calling it again goes on where it stopped: nothing that is done or running is submitted twice. `retry` submits cells
    that failed or were cancelled again. `wait=False` returns as soon as all is submitted. `show` hears of each change.
    """
    raise NotImplementedError


def progress_of(folder: StudyFolder, runner: Runner) -> tuple[CellProgress, ...]:
    """How far each cell is, in the order of the cells. Nothing is submitted."""
    raise NotImplementedError


def cancel_study(folder: StudyFolder, runner: Runner) -> tuple[CellProgress, ...]:
    """Cancel every run of the study that has not ended and no other study of this folder asked for."""
    raise NotImplementedError
