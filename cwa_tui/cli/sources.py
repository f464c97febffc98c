"""The report of a run or a study that is named on a command line, for as long as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput, NotFound
from cwa_engine.base.files import fetch_folder
from cwa_tui.cli.connection import connect

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.records.run_report import RunReport
    from cwa_engine.studies.report import StudyReport


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
def opened_report(name: str) -> Iterator[RunReport | StudyReport]:
    """A folder with the files of a run; else the run of an id, or the study of one. "latest" is the latest finished run.

    The daemon is asked, unless a folder is given. Raises NotFound for what is neither.
    """
    from cwa_engine.records.run_report import open_run
    from cwa_engine.studies.folder import StudyFolder

    if "/" in name or Path(name).is_dir():
        yield open_run(name)
        return
    try:
        folder = StudyFolder.open(name) if name != "latest" else None
    except NotFound:
        folder = None
    if folder is None:
        with connect() as client, opened_run(client, name) as report:
            yield report
        return
    from cwa_daemon.client import DaemonRunner
    from cwa_engine.studies.report import study_report

    with connect() as client:
        if folder.where != (client.host or ""):
            raise InvalidInput(
                f"the runs of {folder.id} are in {folder.where or 'the daemon of this machine'}",
                hint=f"`cwtool --host {folder.where} ...`" if folder.where else "leave out --host",
            )
        yield study_report(folder, DaemonRunner(client))
