"""What a command reads that takes runs and studies alike: a run, a study, or runs to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, NotFound
from cwa_engine.base.files import fetch_folder, user_path
from cwa_engine.figures.figure import Source
from cwa_engine.records.run_id import short_id
from cwa_tui.cli.connection import connect
from cwa_tui.cli.study_place import place_of

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.records.run_report import RunReport
    from cwa_engine.studies.folder import StudyFolder
    from cwa_engine.studies.report import StudyReport


@dataclass(frozen=True, slots=True)
class Opened:
    """A RunReport, a StudyReport or a Comparison, as `of` says; `name` is its id, or one made of the ends of the runs' ids."""

    report: Any
    of: Source
    name: str


@contextmanager
def opened_run(client: Client, run_id: str) -> Iterator[RunReport]:
    """The report of a finished run; the files of one on another machine are copied here for as long as it is open."""
    from cwa_engine.records.run_report import open_run

    if not client.host:
        files = client.check(run_id)
        yield open_run(files.folder, files.fingerprint)
        return
    with fetch_folder() as scratch:
        _, fingerprint = client.download(run_id, Path(scratch))
        yield open_run(scratch, fingerprint)


@contextmanager
def opened_report(named: str) -> Iterator[RunReport | StudyReport]:
    """The report of a run or of a study, as `opened_source` finds it."""
    with opened_source([named]) as opened:
        yield opened.report


@contextmanager
def opened_source(named: Sequence[str]) -> Iterator[Opened]:
    """What an id or a folder names: a run or a study, and of several runs their comparison. "latest" is a run.

    An id may be cut to its end, or to its beginning where no run begins so. No daemon is asked for a folder with the files of
    a run. Raises NotFound, Altered, InvalidInput for a study whose runs are elsewhere, and what `compare` raises.
    """
    with ExitStack() as stack:
        try:
            study = _study_folder(named[0]) if len(named) == 1 else None
            reports = [] if study else [stack.enter_context(_run(name)) for name in named]
        except NotFound as error:
            study, reports = _study_that_begins(named, error), []
        if study:
            yield Opened(_study_report(study, stack), "study", study.id)
        elif len(reports) == 1:
            yield Opened(reports[0], "run", reports[0].run_id)
        else:
            from cwa_engine.records.comparison import compare

            name = "-".join(["comparison", *(short_id(each.run_id) for each in reports)])
            yield Opened(compare(*reports), "comparison", name)


def _study_folder(named: str) -> StudyFolder | None:
    """The study of that folder, or whose id is this or ends so; "latest" is a run."""
    from cwa_engine.studies.folder import LATEST, STUDY, StudyFolder

    if _is_folder(named):
        path = user_path(named, "the folder")
        return StudyFolder.at(path) if (path / STUDY).exists() else None
    try:
        found = None if named == LATEST else StudyFolder.open(named)
    except (NotFound, InvalidInput):
        return None
    return found if found and (found.id == named or found.id.endswith(f"-{named}")) else None


def _study_that_begins(named: Sequence[str], error: NotFound) -> StudyFolder:
    """The study whose id begins like what is no run. Raises `error` where there is none."""
    from cwa_engine.studies.folder import LATEST, StudyFolder

    if len(named) > 1 or named[0] == LATEST or _is_folder(named[0]):
        raise error
    try:
        return StudyFolder.open(named[0])
    except NotFound:
        hint = error.hint or "`cwtool results` lists finished runs, `cwtool study` studies"
        raise NotFound(error.message, hint=hint) from error


def _study_report(folder: StudyFolder, stack: ExitStack) -> StudyReport:
    from cwa_engine.studies.report import study_report

    return study_report(folder, stack.enter_context(place_of(folder)).runner)


@contextmanager
def _run(named: str) -> Iterator[RunReport]:
    from cwa_engine.records.run_report import open_run

    if _is_folder(named):
        yield open_run(named)
        return
    with connect() as client, opened_run(client, named) as found:
        yield found


def _is_folder(named: str) -> bool:
    return "/" in named or Path(named).is_dir()
