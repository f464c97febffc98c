"""What a study has come to: its answer, computed from the reports of its runs. torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.runner import Runner
from cwa_engine.studies.answer import Answer, StudyRun
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress


@dataclass(frozen=True)
class StudyReport:
    """How each cell ended, the runs that are done, and what they answer."""

    folder: StudyFolder
    progress: tuple[CellProgress, ...]
    runs: tuple[StudyRun, ...]
    answer: Answer | None  # None for a grid without a question, and before the first run is done

    @property
    def complete(self) -> bool:
        """Whether all cells have ended, in whatever way."""
        return all(cell.ended for cell in self.progress)


def study_report(folder: StudyFolder, runner: Runner) -> StudyReport:
    """The answer of the runs that are done. When all cells have ended, answer.json and its tables are written beside it."""
    raise NotImplementedError
