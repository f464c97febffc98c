"""Runs asked of the daemon through the same interface as runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_daemon.client.sync_client import Client
from cwa_daemon.protocol import JobOptions, JobState, JobView
from cwa_engine.base.errors import RunFailed, error_from_dict
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Event
from cwa_engine.base.files import fetch_folder
from cwa_engine.records.checksums import altered_error, check_run
from cwa_engine.runner import RunHandle, RunState, RunStateName, states_of
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_engine.records.run_report import RunReport

ASKED_ONE_BY_ONE = 20  # runs; more are looked up in the list of jobs, a thousand with one request
MOST_LISTED = 1000
_STATES: Mapping[str, RunStateName] = {
    JobState.QUEUED: "queued",
    JobState.PAUSED: "queued",
    JobState.RUNNING: "running",
    JobState.DONE: "done",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


class DaemonRunner:
    """Runs specs on the daemon: models stay warm, jobs wait in its queue, and runs outlive this process.

    with Client.connect() as client:
        print(DaemonRunner(client).submit(RunSpec(model="gpt2", topk=(10,))).report().verdicts)

    `command` and `options` are those of every run that is submitted.
    """

    def __init__(self, client: Client, command: str = "", options: JobOptions | None = None) -> None:
        self._client, self._command, self._options = client, command, options

    @property
    def where(self) -> str:
        return self._client.host or ""

    @property
    def elsewhere(self) -> bool:
        return self._client.host is not None

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        """Queue a run. Raises what `Client.submit` raises."""
        return _DaemonRun(self._client, self._client.submit(spec, self._command, self._options, key))

    def attach(self, run_id: str) -> RunHandle:
        return _DaemonRun(self._client, self._client.job(run_id).run_id)

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        if len(run_ids) > ASKED_ONE_BY_ONE:
            return self._listed(set(run_ids))
        return states_of(run_ids, lambda run_id: _state_of(self._client.job(run_id)))

    def wait_for_room(self) -> None:
        """Wait until the job that is the next to begin has begun."""
        waiting = self._client.jobs(limit=1, states=("queued",), descending=False)
        for event in self._client.follow(waiting[0].run_id) if waiting else ():
            if event["kind"] == "state" and event["state"] not in ("queued", "paused"):
                return

    def _listed(self, run_ids: set[str]) -> Mapping[str, RunState]:
        """The states of many runs, out of the list of all."""
        found: dict[str, RunState] = {}
        offset, more = 0, MOST_LISTED
        while more == MOST_LISTED and len(found) < len(run_ids):
            page = self._client.jobs(limit=MOST_LISTED, offset=offset, kind="run")
            found |= {job.run_id: _state_of(job) for job in page if job.run_id in run_ids}
            offset, more = offset + len(page), len(page)
        return found


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

    def state(self) -> RunState:
        return _state_of(self._client.job(self._run_id))

    def report(self) -> RunReport:
        from cwa_engine.records.run_report import open_run  # here: few clients read whole runs

        view = self._client.job(self._run_id)
        if not (view.state == "done" and not view.copy_error):
            self._wait()
        if self._client.host:
            return self._fetched()
        files = self._client.check(self._run_id)
        return open_run(files.folder, files.fingerprint)

    def altered(self) -> tuple[str, ...]:
        return tuple(self._client.check(self._run_id).check.altered)

    def cancel(self) -> None:
        self._client.cancel(self._run_id)

    def _wait(self) -> None:
        """Wait for the end, and raise the error that ended it."""
        last = _last(self._client.follow(self._run_id))
        if last.get("error"):
            raise error_from_dict(last["error"])
        if last["kind"] == "state" and last["state"] != "done":
            raise RunFailed(f"{self._run_id} is {last['state']}", hint=f"`cwtool logs {self._run_id}` has what it said")

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


def _state_of(job: JobView) -> RunState:
    error = error_from_dict(job.error) if job.error else None
    if job.state == JobState.INTERRUPTED:
        return RunState("failed", job.created, error or RunFailed(f"{job.run_id} was interrupted"))
    return RunState(_STATES[job.state], job.created, error)


def _last(events: Iterator[Mapping[str, Any]]) -> Mapping[str, Any]:
    last: Mapping[str, Any] = {}
    for event in events:
        last = event
    return last
