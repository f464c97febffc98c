"""Run folders come home: written under a temporary name, compared with their hashes, and renamed. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cwa_daemon.cluster.messages import RunFiles
from cwa_engine.base.errors import Altered, OutputError
from cwa_engine.base.files import write_folder
from cwa_engine.records.checksums import SUMS, check_run, is_of_a_run, written_hashes
from cwa_engine.records.run_report import FilesInMemory, RunReport, report_from

_AGAIN = "`cwtool study resume` runs it again"


def report_of_files(run_id: str, brought: RunFiles | None) -> RunReport:
    """The report of a run whose files have come, or those that tell of it. Raises Altered where one is not as written."""
    if brought is None or brought.run_id != run_id:
        raise Altered(f"the files of {run_id} did not come", hint=_AGAIN)
    if hashlib.sha256(brought.files.get(SUMS, b"")).hexdigest() != brought.fingerprint:
        raise Altered(f"the list of hashes of {run_id} did not come as it was written", hint=_AGAIN)
    written = written_hashes(run_id, brought.files[SUMS], b"", brought.fingerprint)
    for name, content in brought.files.items():
        if not is_of_a_run(name) or (name != SUMS and name not in written.hashes):
            raise Altered(f"{name!r} came with {run_id} and is no file of it", hint="look at the node that it ran on")
        written.compare(name, content)
    return report_from(FilesInMemory(dict(brought.files)), brought.fingerprint)


def link_home(runs: Path, folder: Path) -> None:
    """Let a run in a shared folder be found among the runs at home, by a link. Raises OSError."""
    link = runs / folder.name
    if not link.is_symlink():
        runs.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder, target_is_directory=True)


def write_home(runs: Path, brought: RunFiles) -> None:
    """Write the folder of a run: it is there whole, or not at all. Raises Altered, and OutputError where the disk refuses."""
    folder = runs / brought.run_id

    def check(written: Path) -> None:
        if altered := check_run(written, brought.fingerprint).altered:
            raise Altered(f"the files of {folder.name} are not what was written: {altered}", hint=_AGAIN)

    try:
        write_folder(folder, brought.files.items(), check)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", hint="make room there") from error
