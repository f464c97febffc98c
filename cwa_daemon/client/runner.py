"""Runs asked of the daemon through the same interface as runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_daemon.client.sync_client import Client
from cwa_engine.base.errors import RunFailed, error_from_dict
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Event
from cwa_engine.base.files import fetch_folder
from cwa_engine.records.checksums import altered_error, check_run
from cwa_engine.runner import RunHandle
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_engine.records.run_report import RunReport


class DaemonRunner:
    """Runs specs on the daemon: models stay warm, jobs wait in its queue, and runs outlive this process.

    with Client.connect() as client:
        print(DaemonRunner(client).submit(RunSpec(model="gpt2", topk=(10,))).report().verdicts)
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(self, spec: RunSpec) -> RunHandle:
        """Queue a run. Raises what `Client.submit` raises."""
        return _DaemonRun(self._client, self._client.submit(spec))


class _DaemonRun:
    """A job of the daemon."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        return self._run_id

    def events(self) -> Iterator[Event]:
        for plain in self._client.follow(self._run_id):
            if event := event_from_plain(plain):  # what a job says beside, its states, is in none of them
                yield event

    def report(self) -> RunReport:
        from cwa_engine.records.run_report import open_run  # here: few clients read whole runs

        last = _last(self._client.follow(self._run_id))
        if last.get("error"):
            raise error_from_dict(last["error"])
        if last["kind"] == "state" and last["state"] != "done":
            raise RunFailed(f"{self._run_id} is {last['state']}", hint=f"`cwtool logs {self._run_id}` has what it said")
        if self._client.host:
            return self._fetched()
        files = self._client.check(self._run_id)
        return open_run(files.folder, files.fingerprint)

    def cancel(self) -> None:
        self._client.cancel(self._run_id)

    def _fetched(self) -> RunReport:
        """The report of a run on another machine, with all its files in memory."""
        from cwa_engine.records.run_report import FilesInMemory, report_from

        with fetch_folder() as scratch:
            folder = Path(scratch)
            run_id, fingerprint = self._client.download(self._run_id, folder)
            check = check_run(folder, fingerprint)
            if check.altered:
                raise altered_error(run_id, check.altered)
            contents = {path.name: path.read_bytes() for path in folder.iterdir()}
        return report_from(FilesInMemory(contents), check.fingerprint)


def _last(events: Iterator[Mapping[str, Any]]) -> Mapping[str, Any]:
    last: Mapping[str, Any] = {}
    for event in events:
        last = event
    return last
