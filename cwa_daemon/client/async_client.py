"""The client for programs that wait on more than one thing."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_daemon import protocol
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import fetching, listing, reading
from cwa_daemon.client.answers import Result, Stopped
from cwa_daemon.client.connection import Connection
from cwa_daemon.client.fetching import RunFiles
from cwa_daemon.client.following import follow
from cwa_daemon.client.submitting import access_of_shell, submit_job, with_texts
from cwa_daemon.protocol import (
    HIGHEST_PRIORITY,
    JobOptions,
    JobPage,
    JobQuery,
    JobView,
    Marks,
    Pruned,
    Sample,
    StatusView,
)
from cwa_engine.base.errors import InvalidInput, OutputError, VersionMismatch
from cwa_engine.base.files import check_output, fetch_folder
from cwa_engine.base.plain import JsonMap
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.records.checksums import MANIFEST, altered_error, check_run
from cwa_engine.records.output import claim_output, copy_run
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_engine.records.run_report import RunReport


class AsyncClient:
    """A connection to the daemon. Open it with `await AsyncClient.connect()`, close it with `await client.close()`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._connection = Connection(settings)

    @classmethod
    async def connect(cls, settings: Settings | None = None, start: bool = True) -> AsyncClient:
        """Connect, starting a daemon where there is none. With `start=False` that raises NoDaemon instead.

        A daemon on another machine, `settings.host`, is never started from here.
        """
        client = cls(settings or Settings())
        try:
            await client._connection.open(start)
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def daemon_version(self) -> str:
        return self._connection.daemon_version

    @property
    def where(self) -> str:
        """Which daemon this is, in words."""
        return self._connection.where

    async def wait_until_lost(self) -> None:
        """Wait until the connection to a daemon of this machine has ended, as when its process is killed."""
        await self._connection.ended.wait()

    async def close(self) -> None:
        await self._connection.close()

    async def _request(self, op: str, timeout_s: float | None = None, **fields: Any) -> JsonMap:
        return await self._connection.request(op, timeout_s, **fields)

    # runs

    async def submit(
        self, spec: RunSpec, command: str = "", options: JobOptions | None = None, client_key: str | None = None
    ) -> str:
        """Queue a run and give its run id. What can be refused without a model is refused here, before anything is queued.

        Who is not sure whether a submission arrived may repeat it with the same `client_key`: it runs once.

        Texts that the daemon cannot open, out of a pipe or from here for another machine, are handed over before.

        Raises DataError for texts that cannot be used, OutputError for a folder that cannot be written, and OutputTaken for
        one that holds something else than a run of this spec, unless `options.force`.
        """
        if spec.output and self.settings.host:
            raise InvalidInput(
                f"the daemon of {self.settings.host} cannot write to a folder of this machine",
                hint="leave the spec without `output`, and `fetch` the run's files when it is done",
            )
        spec = await with_texts(self._connection, spec)
        if spec.output:
            claim_output(spec.output, spec, options is not None and options.force)
        return await submit_job(self._connection, "run", spec, command, options, client_key)

    async def submit_again(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        """Queue a spec that came from the daemon: its paths are those of the daemon's machine, and are read there."""
        return await submit_job(self._connection, "run", spec, command, options)

    async def load(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        """Queue the loading of `spec.model` and give the job's run id."""
        return await submit_job(self._connection, "load", spec, command, options)

    async def plan(self, spec: RunSpec, command: str = "", offline: bool = False) -> str:
        """Queue the planning of a run and give the job's run id; the plan is in its event of kind "plan".

        With `offline` nothing is downloaded for it: a model of the guide that is not on disk is planned from the guide.
        """
        texts_there = await with_texts(self._connection, spec)
        return await submit_job(self._connection, "plan", texts_there, command, offline=offline)

    async def pull(self, spec: RunSpec, command: str = "") -> str:
        """Queue the download of `spec.model`, which is also checked, and give the job's run id.

        What was found is in its event of kind "pulled". A model that is on disk is only checked.
        """
        return await submit_job(self._connection, "pull", spec, command)

    async def inspect(self, spec: RunSpec, target: str) -> str:
        """Queue a look at a weight, row, column or head of a run's model, before all that waits; gives the job's run id.

        The facts are in its event of kind "inspected".
        """
        fields = {name: getattr(spec, name) for name in ("model", "revision", "dtype", "device", "offload")}
        options = JobOptions(priority=HIGHEST_PRIORITY)
        return await submit_job(self._connection, "inspect", RunSpec(**fields, weights=(target,)), "", options)

    async def weight(self, spec: RunSpec, target: str, command: str = "") -> str:
        """Queue the examination of one weight by a spec's model and texts, and give the job's run id.

        The `WeightCard` is in its event of kind "card". Raises VersionMismatch for a daemon that makes none.
        """
        self._needs(protocol.EXAMINING_SINCE, "examines no weights")
        texts_there = await with_texts(self._connection, spec.model_copy(update={"weights": (target,)}))
        return await submit_job(self._connection, "weight", texts_there, command)

    async def prompt(self, spec: PromptSpec, command: str = "") -> str:
        """Queue a prompt for the intact and the damaged model, before all that waits; gives the job's run id.

        The `PromptAnswer` is in its event of kind "answered". Raises VersionMismatch for a daemon that answers none.
        """
        self._needs(protocol.EXAMINING_SINCE, "answers no prompts")
        options = JobOptions(priority=HIGHEST_PRIORITY)
        return await submit_job(self._connection, "prompt", spec, command, options)

    async def retry(self, run_id: str) -> str:
        """Queue an ended run again, and give the new run id."""
        reply = await self._request(
            "retry", run_id=run_id, client_key=uuid.uuid4().hex, access=access_of_shell(self.settings)
        )
        return str(reply["run_id"])

    async def cancel(self, run_id: str) -> str:
        """Cancel a job and give its state; a running one ends between two batches, so follow it to see its end."""
        return str((await self._request("cancel", run_id=run_id))["state"])

    async def job(self, run_id: str) -> JobView:
        """A job by run id, by an unambiguous part of it, or "latest", the latest run. Raises NotFound."""
        return JobView.model_validate((await self._request("job", run_id=run_id))["job"])

    async def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        state: str | None = None,
        kind: str | None = None,
        model: str | None = None,
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        text: str | None = None,
        since: float | None = None,
        sort: str = "created",
        descending: bool = True,
    ) -> list[JobView]:
        """Jobs as `JobQuery` says, the latest first if not sorted otherwise. Raises InvalidInput for an unknown state,
        kind or order, and from an older daemon for what it does not know."""
        some_states, some_kinds = (*states, *filter(None, [state])), (*kinds, *filter(None, [kind]))
        query = JobQuery(limit, offset, some_states, some_kinds, model, text, since, sort, descending)
        return await listing.jobs(query, self._request)

    async def list_jobs(self, query: JobQuery | None = None) -> JobPage:
        """The jobs that a query asks for, and how many it finds in all. Raises as `jobs` does."""
        return await listing.page(query or JobQuery(), self._request)

    async def mark(
        self, run_id: str, add: Sequence[str] = (), remove: Sequence[str] = (), note: str | None = None
    ) -> Marks:
        """Add and remove tags of a run, and write its note, which None leaves as it is; gives what it has then.

        Raises InvalidInput for what cannot be a tag, and VersionMismatch for an older daemon.
        """
        self._needs(protocol.MARKS_SINCE, "keeps no tags and no notes")
        protocol.check_tags([*add, *remove])
        protocol.check_note(note or "")
        return Marks(**(await self._request("mark", run_id=run_id, add=[*add], remove=[*remove], note=note))["marks"])

    async def marks(self) -> dict[str, Marks]:
        """The tags and notes of all runs that have any, by run id. Raises VersionMismatch for an older daemon."""
        self._needs(protocol.MARKS_SINCE, "keeps no tags and no notes")
        return {run_id: Marks(**marks) for run_id, marks in (await self._request("marks"))["marks"].items()}

    def _needs(self, minor: int, otherwise: str) -> None:
        """Raises VersionMismatch for a daemon of an earlier minor version of the protocol, which does `otherwise`."""
        if self._connection.minor < minor:
            raise VersionMismatch(
                f"the daemon is older than this client, and {otherwise}", hint="`cwtool daemon restart --when-idle`"
            )

    async def pause(self, run_id: str | None = None) -> list[str]:
        """Keep a queued job, or all of them, from being begun; gives their run ids."""
        return list((await self._request("pause", run_id=run_id))["run_ids"])

    async def resume(self, run_id: str | None = None) -> list[str]:
        """Let a paused job, or all of them, take its turn again; gives their run ids."""
        return list((await self._request("resume", run_id=run_id))["run_ids"])

    async def prune(self, older_than_s: float, with_results: bool = False, dry_run: bool = False) -> Pruned:
        """Forget jobs that ended so long ago; of finished runs only the events, unless `with_results`."""
        reply = await self._request("prune", older_than_s=older_than_s, with_results=with_results, dry_run=dry_run)
        return Pruned(**{name: reply[name] for name in Pruned.model_fields})

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[JsonMap]:
        """The job's events after number `after_seq`: those that were, then those to come, until the job has ended.

        Each is a map with `seq`, `time`, `kind` and the fields of that kind of event (`cwa_engine.base.events`), or of kind
        "state" with `state`, `error` and `output`. Where that one names a folder, a last event of kind "copied" tells by
        its `error` whether the files are there. Raises DaemonUnreachable where the daemon goes away.
        """
        return follow(self._connection, run_id, after_seq)

    # results and state

    async def results(self, limit: int = 50) -> list[JsonMap]:
        """Summaries of finished runs, latest first; of one that cannot be read `run_id` and why it is `unreadable`."""
        return list((await self._request("results", limit=limit))["results"])

    async def result(self, run_id: str) -> Result:
        """A finished run. Raises NotFound for one that is not."""
        reply = await self._request("result", run_id=run_id)
        return Result(Path(reply["folder"]), reply["summary"])

    async def topk(
        self, run_id: str, metric: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[str, list[JsonMap]]:
        """(metric, rows of its top-k file, fields as in `TopWeight`); without a metric, of the run's first one."""
        reply = await self._request("topk", run_id=run_id, metric=metric, offset=offset, limit=limit)
        return reply["metric"], reply["rows"]

    async def manifest(self, run_id: str) -> JsonMap:
        """The manifest of a finished run: all that is needed to run it again. Raises NotFound and Altered."""
        return dict(json.loads(await self.read_file(run_id, MANIFEST)))

    async def read_file(self, run_id: str, name: str) -> bytes:
        """A file of a finished run, read in pieces: what the run wrote, by its hash and by the fingerprint its daemon has.

        Raises NotFound, and Altered for a file that is not what the run wrote.
        """
        return await (await reading.open_reader(run_id, self._request)).read(name)

    async def report(self, run_id: str, read_more: reading.ReadMore = reading.refuse) -> RunReport:
        """What the files of a finished run say, typed. Raises NotFound and Altered.

        Rankings and the losses of every text may be large: `topk_*.csv` and `evaluation.csv` are not read, and asking the
        report for them raises InvalidInput; `read_file` gives them.
        """
        reader = await reading.open_reader(run_id, self._request)
        return await reading.report_of(reader, read_more, None if self.settings.host else reader.folder)

    async def check(self, run_id: str) -> RunFiles:
        """The files of a finished run, and whether they are what it wrote. Raises NotFound."""
        return await fetching.check(run_id, self._request)

    async def download(self, run_id: str, folder: Path) -> tuple[str, str | None]:
        """Write the files of a finished run into an empty folder as they are, altered ones too.

        Gives the whole run id, and its fingerprint by the daemon's job database. Raises NotFound and OutputError.
        """
        try:
            return await fetching.download(run_id, folder, self._request)
        except OSError as error:
            raise OutputError(
                f"the run's files cannot be kept in {folder} on the way: {error.strerror}",
                hint="make room there, or set TMPDIR to another folder",
            ) from error

    async def fetch(self, run_id: str, folder: Path, force: bool = False) -> str:
        """Write the files of a finished run into a folder of this machine; gives the whole run id.

        Raises NotFound for a run that is not finished, Altered for one whose files are not what it wrote, OutputError for a
        folder that cannot be written, and OutputTaken for one that holds something else than a run of its spec, unless
        `force`.
        """
        check_output(folder)
        with fetch_folder() as scratch:
            whole_id, fingerprint = await self.download(run_id, Path(scratch))
            if altered := check_run(Path(scratch), fingerprint).altered:
                raise altered_error(whole_id, altered)
            copy_run(Path(scratch), folder, force)
        return whole_id

    async def status(self) -> StatusView:
        """The daemon, its warm models, workers and memory."""
        return StatusView.model_validate((await self._request("status"))["status"])

    async def telemetry(self, after: float = 0.0) -> list[Sample]:
        """What devices and processes used in the last minutes, oldest first, later than `after`, seconds since the epoch."""
        if self._connection.minor < protocol.LATER_SAMPLES_SINCE:  # such a daemon tells everything
            samples = (await self._request("telemetry"))["samples"]
            return [Sample.model_validate(sample) for sample in samples if sample["time"] > after]
        return [Sample.model_validate(sample) for sample in (await self._request("telemetry", after=after))["samples"]]

    async def unload(self, model: str) -> list[str]:
        """Drop a warm model; gives the names that were dropped. Raises NotFound where it is not warm."""
        return list((await self._request("unload", model=model))["names"])

    async def shutdown(self, when_idle: bool = False) -> Stopped:
        """Ask the daemon to stop, if asked only when nothing runs; `stop_daemon` also waits until it is gone."""
        reply = await self._request("shutdown", when_idle=when_idle)
        return Stopped(reply["pid"], reply["interrupted"], reply["queued"])
