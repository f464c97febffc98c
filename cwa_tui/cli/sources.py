"""What a command reads that takes runs and studies alike: a run, a study, or runs to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import NotFound
from cwa_engine.figures.figure import Source


@dataclass(frozen=True, slots=True)
class Opened:
    """A RunReport, a StudyReport or a Comparison, as `of` says; `name` is what it is called in sentences."""

    report: Any
    of: Source
    name: str


@contextmanager
def opened_source(named: str, others: Sequence[str] = ()) -> Iterator[Opened]:
    """What an id or a folder names: a run or a study, or with `others` the comparison of these runs.

    "latest" is the latest finished run. A run's id counts where no study has it. No daemon is asked for a folder of a run. The
    files of a run on another machine are copied here for as long as it is open. Raises NotFound, Altered, and what
    `compare` raises.
    """
    from cwa_engine.records.comparison import compare

    with ExitStack() as stack:
        if others:
            reports = [stack.enter_context(_run(run)) for run in (named, *others)]
            yield Opened(compare(*reports), "comparison", "this comparison")
        elif study := _study_id(named):
            from cwa_engine.studies.report import study_report
            from cwa_tui.cli.study import opened_study

            folder, runner, _ = stack.enter_context(opened_study(study))
            yield Opened(study_report(folder, runner), "study", folder.id)
        else:
            report = stack.enter_context(_run(named))
            yield Opened(report, "run", report.run_id)


def _study_id(named: str) -> str:
    """The id of the study that is named, also by its folder; empty where none is."""
    from cwa_engine.studies.folder import LATEST, STUDY, StudyFolder

    if "/" in named:
        folder = Path(named)
        return folder.resolve().name if (folder / STUDY).exists() else ""
    try:
        return "" if named == LATEST else StudyFolder.open(named).id
    except NotFound:
        return ""


@contextmanager
def _run(named: str) -> Iterator[Any]:
    from cwa_engine.records.run_report import open_run

    if "/" in named or Path(named).is_dir():
        yield open_run(named)
        return
    from cwa_tui.cli import exported
    from cwa_tui.cli.connection import connect

    with connect() as client, exported.opened(client, named) as report:
        yield report
