"""The only way in: `AsyncClient` for programs that wait on more than one thing, `Client` for those that do not.

with Client.connect() as client:
    run_id = client.submit(RunSpec(model="gpt2"))
    for event in client.follow(run_id):
        print(event["kind"])
    print(client.result(run_id).summary["baseline"])
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import zmq
import zmq.asyncio

from cwa_daemon import fetching, handover, lifecycle, protocol, reach, records
from cwa_daemon.fetching import RunFiles
from cwa_daemon.loop_thread import LoopThread
from cwa_daemon.protocol import JobOptions, JobView, Pruned, Sample, StatusView
from cwa_daemon.settings import Settings
from cwa_daemon.threads import in_thread
from cwa_engine import __version__
from cwa_engine.base.errors import (
    DaemonUnreachable,
    InvalidInput,
    NoDaemon,
    NotGreeted,
    OutputError,
    RunFailed,
    VersionMismatch,
    error_from_dict,
)
from cwa_engine.base.files import check_output, fetch_folder
from cwa_engine.hub.sources import HubAccess
from cwa_engine.records.checksums import altered_error, check_run
from cwa_engine.records.output import claim_output, copy_run
from cwa_engine.spec import RunSpec

T = TypeVar("T")

_SILENCE_S = 3.0  # a follower that hears nothing for so long asks whether the daemon is there


@dataclass(frozen=True)
class Result:
    """A finished run: where its files are, and its summary."""

    folder: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Stopped:
    """What stopping the daemon meant: the runs that were interrupted, and how many wait for the next start."""

    pid: int
    interrupted: list[str]
    queued: int
    by_force: bool = False  # it could not be asked: what it did is not known


class AsyncClient:
    """A connection to the daemon. Open it with `await AsyncClient.connect()`, close it with `await client.close()`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.daemon_version = ""
        self._greetings = 0  # one more each time a daemon began anew behind the same socket
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._parts: dict[int, list[bytes]] = {}  # of replies that are not whole yet
        self._events: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        self._link = reach.Link()
        self._receiver: asyncio.Task[None] | None = None

    @property
    def where(self) -> str:
        """Which daemon this is, in words."""
        return self._link.where

    @classmethod
    async def connect(cls, settings: Settings | None = None, start: bool = True) -> AsyncClient:
        """Connect, starting a daemon where there is none. With `start=False` that raises NoDaemon instead.

        A daemon on another machine, `settings.host`, is never started from here.
        """
        client = cls(settings or Settings())
        try:
            await client._open(start)
        except BaseException:
            await client.close()
            raise
        return client

    async def _open(self, start: bool) -> None:
        settings, patience_s = self.settings, self.settings.request_timeout_s
        if settings.host:
            self._link = await reach.connect_to_host(self._socket, settings, settings.host)
        else:
            if start and await asyncio.to_thread(lifecycle.start, settings):
                patience_s = settings.start_timeout_s
            self._link = link = reach.LocalLink(self._socket, settings, self._lost)
            await link.connect()
        self._receiver = asyncio.create_task(self._receive())
        await self._greet(patience_s)

    async def _greet(self, timeout_s: float) -> None:
        hello = await self._ask("hello", timeout_s, **_HELLO)
        self.daemon_version = hello["version"]
        self._greetings += 1

    async def close(self) -> None:
        if self._receiver:
            self._receiver.cancel()
        self._link.close()
        self._socket.close()
        self._context.term()

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
        spec = await self._with_texts(spec)
        if spec.output:
            claim_output(spec.output, spec, options is not None and options.force)
        return await self._submit("run", spec, command, options, client_key)

    async def submit_again(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        """Queue a spec that came from the daemon: its paths are those of the daemon's machine, and are read there."""
        return await self._submit("run", spec, command, options)

    async def load(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        """Queue the loading of `spec.model` and give the job's run id."""
        return await self._submit("load", spec, command, options)

    async def plan(self, spec: RunSpec, command: str = "") -> str:
        """Queue the planning of a run and give the job's run id; the plan is in its event of kind "plan"."""
        return await self._submit("plan", await self._with_texts(spec), command)

    async def retry(self, run_id: str) -> str:
        """Queue an ended run again, and give the new run id."""
        reply = await self._request("retry", run_id=run_id, client_key=uuid.uuid4().hex, access=self._access())
        return str(reply["run_id"])

    async def cancel(self, run_id: str) -> str:
        """Cancel a job and give its state; a running one ends between two batches, so follow it to see its end."""
        return str((await self._request("cancel", run_id=run_id))["state"])

    async def job(self, run_id: str) -> JobView:
        """A job by run id, by an unambiguous part of it, or "latest". Raises NotFound."""
        return JobView.model_validate((await self._request("job", run_id=run_id))["job"])

    async def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        state: str | None = None,
        kind: str | None = None,
        model: str | None = None,
    ) -> list[JobView]:
        """The latest jobs, latest first, after the first `offset`; `model` is a part of the model's name."""
        reply = await self._request("jobs", limit=limit, offset=offset, state=state, kind=kind, model=model)
        return [JobView.model_validate(job) for job in reply["jobs"]]

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

    async def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[dict[str, Any]]:
        """The job's events after number `after_seq`: those that were, then those to come, until the job has ended.

        Each is a map with `seq`, `time`, `kind` and the fields of that kind of event (`cwa_engine.base.events`), or of kind
        "state" with `state`, `error` and `output`. Where that one names a folder, a last event of kind "copied" tells by
        its `error` whether the files are there. Raises DaemonUnreachable where the daemon goes away.
        """
        seen, number = after_seq, None
        try:
            while True:
                if number is None:
                    reply = await self._request("subscribe", run_id=run_id, after_seq=seen)
                    number, greetings = reply["subscription"], self._greetings
                event = await self._next_event(self._events[number])
                if event is None:
                    if greetings != self._greetings:  # another daemon, which knows the events but not who follows
                        self._events.pop(number, None)
                        number = None
                    continue
                seen = event["seq"]
                if seen % protocol.ACKNOWLEDGE_EVERY == 0:
                    await self._tell("acknowledge", subscription=number, seq=seen)
                yield event
                if protocol.is_last(event):
                    return
        finally:
            if number is not None:
                self._events.pop(number, None)
                if not self._socket.closed:
                    await self._tell("unsubscribe", subscription=number)

    # results and state

    async def results(self, limit: int = 50) -> list[dict[str, Any]]:
        """Summaries of finished runs, latest first; of one that cannot be read `run_id` and why it is `unreadable`."""
        return list((await self._request("results", limit=limit))["results"])

    async def result(self, run_id: str) -> Result:
        """A finished run. Raises NotFound for one that is not."""
        reply = await self._request("result", run_id=run_id)
        return Result(Path(reply["folder"]), reply["summary"])

    async def topk(
        self, run_id: str, metric: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[str, list[dict[str, Any]]]:
        """(metric, rows of its top-k file, fields as in `TopWeight`); without a metric, of the run's first one."""
        reply = await self._request("topk", run_id=run_id, metric=metric, offset=offset, limit=limit)
        return reply["metric"], reply["rows"]

    async def manifest(self, run_id: str) -> dict[str, Any]:
        """The manifest of a finished run: all that is needed to run it again. Raises NotFound and Altered."""
        return await fetching.manifest(run_id, self._request)

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

    async def telemetry(self) -> list[Sample]:
        """What devices and processes used in the last minutes, oldest first."""
        return [Sample.model_validate(sample) for sample in (await self._request("telemetry"))["samples"]]

    async def unload(self, model: str) -> list[str]:
        """Drop a warm model; gives the names that were dropped. Raises NotFound where it is not warm."""
        return list((await self._request("unload", model=model))["names"])

    async def shutdown(self, when_idle: bool = False) -> Stopped:
        """Ask the daemon to stop, if asked only when nothing runs; `stop_daemon` also waits until it is gone."""
        reply = await self._request("shutdown", when_idle=when_idle)
        return Stopped(reply["pid"], reply["interrupted"], reply["queued"])

    # the wire

    async def _with_texts(self, spec: RunSpec) -> RunSpec:
        """The spec with texts that the daemon can read: it is handed a copy of those that it cannot."""
        away, most_bytes = bool(self.settings.host), self.settings.texts_bytes
        found = await in_thread(lambda: handover.prepare(spec, away, most_bytes))
        if found is None:
            return spec
        path = await handover.send(found, self._request)
        read_there = {"data_file": path, "data_name": found.shown, "dataset": None, "text_column": found.text_column}
        return spec.model_copy(update=read_there)

    async def _submit(
        self,
        kind: str,
        spec: RunSpec,
        command: str,
        options: JobOptions | None = None,
        client_key: str | None = None,
    ) -> str:
        reply = await self._request(
            "submit",
            kind=kind,
            spec=spec.model_dump(mode="json"),
            client_key=client_key or uuid.uuid4().hex,
            command=command,
            access=self._access(),
            options=(options or JobOptions()).model_dump(exclude_defaults=True),  # a daemon may know fewer of them
        )
        return str(reply["run_id"])

    def _access(self) -> dict[str, Any]:
        """How to reach the Hub, as this shell has it. Of another machine its own, but for a token that is set here."""
        if self.settings.host and not os.environ.get("HF_TOKEN"):
            return {}
        access = HubAccess.from_environment()
        return {"token": access.token} if self.settings.host else dataclasses.asdict(access)

    async def _request(self, op: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises the error the daemon answers, or DaemonUnreachable.

        A daemon that was started anew is greeted, and asked again: it has refused without doing anything. That one may end
        before it is asked as well, so each that refuses is greeted.
        """
        while True:
            try:
                return await self._ask(op, timeout_s, **fields)
            except NotGreeted:
                await self._greet(timeout_s or self.settings.request_timeout_s)

    async def _ask(self, op: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        request_id = next(self._ids)
        reply = self._replies[request_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s or self.settings.request_timeout_s):
                await self._send(op, id=request_id, **fields)
                message: dict[str, Any] = await reply
        except TimeoutError:
            if not self.settings.host:
                patience_s = timeout_s or self.settings.request_timeout_s
                raise await asyncio.to_thread(
                    lifecycle.not_answering, self.settings, self.where, patience_s, f"'{op}'"
                ) from None
            raise self._silent("did not answer", op) from None
        finally:
            self._replies.pop(request_id, None)
            self._parts.pop(request_id, None)
        if message.get("lost"):
            raise self._silent("hung up before it answered", op)
        if not message["ok"]:
            raise error_from_dict(message["error"])
        return message

    def _silent(self, what: str, op: str) -> DaemonUnreachable:
        restart = f"`cwtool daemon restart` ends it, and starts another; its log is {self.settings.daemon_log}"
        return DaemonUnreachable(
            f"the daemon ({self.where}) {what} '{op}'",
            hint=f"look after it on {self.settings.host}" if self.settings.host else restart,
        )

    def _lost(self) -> None:
        """The connection has ended: what was asked on it, and has no reply yet, is not answered any more."""
        with contextlib.suppress(zmq.Again):
            while True:
                self._heard(zmq.Socket.shadow(self._socket.underlying).recv(zmq.DONTWAIT))
        for reply in self._replies.values():
            if not reply.done():
                reply.set_result({"lost": True})

    async def _tell(self, op: str, **fields: Any) -> None:
        """Send what nobody answers; where there is no connection it has no meaning any more."""
        if self._link.up:
            with contextlib.suppress(zmq.Again):
                await self._socket.send(self._frame(op, **fields), zmq.DONTWAIT)

    async def _send(self, op: str, **fields: Any) -> None:
        frame = self._frame(op, **fields)
        while True:
            await self._link.ready()
            try:
                await self._socket.send(frame, zmq.DONTWAIT)
            except zmq.Again:  # the connection has just ended, or nobody reads from it
                self._link.drop()
            else:
                return

    def _frame(self, op: str, **fields: Any) -> bytes:
        fields.setdefault("id", next(self._ids))
        return protocol.encode({"op": op, **fields}, protocol.MAX_REQUEST_BYTES)

    async def _receive(self) -> None:
        """The one reader of the socket."""
        while True:
            self._heard(await self._socket.recv())

    def _heard(self, frame: bytes) -> None:
        """Replies to who asked, events to who follows."""
        try:
            message = protocol.decode(frame, protocol.MAX_REPLY_BYTES, protocol.MAX_REPLY_ELEMENTS)
        except InvalidInput as error:
            unreadable = RunFailed(
                f"the daemon's answer cannot be read: {error.message}", hint="its version may differ"
            )
            self._answered(protocol.peek(frame)[1], {"ok": False, "error": unreadable.to_dict()})
            return
        if "id" not in message:  # it comes unasked; an older daemon sends events one by one
            arrived = self._events.get(message["subscription"])
            if arrived is not None:  # or its follower has left in the meantime
                for event in message["events"] if "events" in message else [message["event"]]:
                    arrived.put_nowait(event)
            return
        if "part" in message:
            self._join(message)
            return
        if "subscription" in message:  # its events may come before the one who asked looks at this reply
            self._events[message["subscription"]] = asyncio.Queue()
        self._answered(message["id"], message)

    def _join(self, part: dict[str, Any]) -> None:
        """Keep a part of a reply that somebody waits for, and read the reply when it is whole."""
        request_id = part["id"]
        if request_id not in self._replies:
            return
        pieces = self._parts.setdefault(request_id, [])
        pieces.append(part["data"])
        if len(pieces) == part["parts"]:
            self._heard(b"".join(self._parts.pop(request_id)))

    def _answered(self, request_id: int | None, message: dict[str, Any]) -> None:
        reply = self._replies.get(request_id) if request_id is not None else None
        if reply and not reply.done():
            reply.set_result(message)

    async def _next_event(self, arrived: asyncio.Queue[dict[str, Any]]) -> dict[str, Any] | None:
        """The next event; None after a silence, with the daemon there. Raises DaemonUnreachable where nobody is."""
        if not arrived.empty():
            return arrived.get_nowait()
        try:
            async with asyncio.timeout(_SILENCE_S):  # `wait_for` would make a task for each event
                return await arrived.get()
        except TimeoutError:
            await self.status()
            return None


class Client:
    """The same, for programs that do one thing at a time; also in a notebook, whose own event loop runs already."""

    def __init__(self, loop: LoopThread, client: AsyncClient) -> None:
        self._loop = loop
        self._client = client

    @classmethod
    def connect(cls, settings: Settings | None = None, start: bool = True) -> Client:
        """Connect, starting a daemon where there is none. With `start=False` that raises NoDaemon instead."""
        loop = LoopThread()
        try:
            return cls(loop, loop.run(AsyncClient.connect(settings, start)))
        except BaseException:
            loop.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if not self._loop.closed:
            self._loop.run(self._client.close())
            self._loop.close()

    @property
    def daemon_version(self) -> str:
        return self._client.daemon_version

    @property
    def host(self) -> str | None:
        """The name of the other machine, where the daemon is on one."""
        return self._client.settings.host

    @property
    def where(self) -> str:
        """Which daemon this is, in words."""
        return self._client.where

    def submit(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        return self._run(self._client.submit(spec, command, options))

    def submit_again(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        return self._run(self._client.submit_again(spec, command, options))

    def load(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        return self._run(self._client.load(spec, command, options))

    def plan(self, spec: RunSpec, command: str = "") -> str:
        return self._run(self._client.plan(spec, command))

    def retry(self, run_id: str) -> str:
        return self._run(self._client.retry(run_id))

    def cancel(self, run_id: str) -> str:
        return self._run(self._client.cancel(run_id))

    def job(self, run_id: str) -> JobView:
        return self._run(self._client.job(run_id))

    def jobs(
        self,
        limit: int = 50,
        offset: int = 0,
        state: str | None = None,
        kind: str | None = None,
        model: str | None = None,
    ) -> list[JobView]:
        return self._run(self._client.jobs(limit, offset, state, kind, model))

    def pause(self, run_id: str | None = None) -> list[str]:
        return self._run(self._client.pause(run_id))

    def resume(self, run_id: str | None = None) -> list[str]:
        return self._run(self._client.resume(run_id))

    def prune(self, older_than_s: float, with_results: bool = False, dry_run: bool = False) -> Pruned:
        return self._run(self._client.prune(older_than_s, with_results, dry_run))

    def telemetry(self) -> list[Sample]:
        return self._run(self._client.telemetry())

    def follow(self, run_id: str, after_seq: int = 0) -> Iterator[dict[str, Any]]:
        """Events as `AsyncClient.follow` gives them. A Ctrl-C raises KeyboardInterrupt here; the connection stays usable."""
        events = self._client.follow(run_id, after_seq)
        while (event := self._run(_next_or_none(events))) is not None:
            yield event

    def results(self, limit: int = 50) -> list[dict[str, Any]]:
        return self._run(self._client.results(limit))

    def result(self, run_id: str) -> Result:
        return self._run(self._client.result(run_id))

    def topk(
        self, run_id: str, metric: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[str, list[dict[str, Any]]]:
        return self._run(self._client.topk(run_id, metric, offset, limit))

    def manifest(self, run_id: str) -> dict[str, Any]:
        return self._run(self._client.manifest(run_id))

    def download(self, run_id: str, folder: Path) -> tuple[str, str | None]:
        return self._run(self._client.download(run_id, folder))

    def check(self, run_id: str) -> RunFiles:
        return self._run(self._client.check(run_id))

    def fetch(self, run_id: str, folder: Path, force: bool = False) -> str:
        return self._run(self._client.fetch(run_id, folder, force))

    def status(self) -> StatusView:
        return self._run(self._client.status())

    def unload(self, model: str) -> list[str]:
        return self._run(self._client.unload(model))

    def shutdown(self, when_idle: bool = False) -> Stopped:
        return self._run(self._client.shutdown(when_idle))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)


def start_daemon(settings: Settings | None = None, listen: str | None = None) -> bool:
    """Start a daemon and wait until it answers; False where one ran already. Raises DaemonNotStartable.

    With `listen`, tcp://HOST:PORT, it also takes connections from other machines.
    """
    settings = settings or Settings()
    return lifecycle.start(settings.model_copy(update={"listen": listen}) if listen else settings)


def stop_daemon(
    settings: Settings | None = None, timeout_s: float | None = 30.0, when_idle: bool = False, force: bool = False
) -> Stopped | None:
    """Stop the daemon, if asked only when nothing runs, and wait until its process is gone; None where none ran.

    The end of one on another machine is not waited for. One that speaks another version of the protocol is asked by SIGTERM.
    One that does not answer, or does not end, is killed with `force`; without it that raises DaemonUnreachable, which says
    what it does.
    """
    settings = settings or Settings()
    force = force and not settings.host
    try:
        if force and lifecycle.condition(settings) == lifecycle.STOPPED:  # it cannot answer
            return Stopped(lifecycle.kill(settings), [], 0, by_force=True)
        with Client.connect(settings, start=False) as client:
            stopped = client.shutdown(when_idle)
    except NoDaemon:
        if not settings.host:
            records.end_all(settings.workers)  # which finish what they were at when their daemon was killed
        return None
    except VersionMismatch:
        if settings.host or when_idle:
            raise
        try:
            return Stopped(lifecycle.terminate(settings, settings.request_timeout_s), [], 0, by_force=True)
        except DaemonUnreachable:
            if not force:
                raise
            return Stopped(lifecycle.kill(settings), [], 0, by_force=True)
    except DaemonUnreachable:
        if not force:
            raise
        return Stopped(lifecycle.kill(settings), [], 0, by_force=True)
    if not settings.host and not lifecycle.wait_until_gone(stopped.pid, timeout_s):
        if force:
            lifecycle.kill(settings)
            return dataclasses.replace(stopped, by_force=True)
        raise DaemonUnreachable(
            f"the daemon (pid {stopped.pid}) has not stopped in {timeout_s} s",
            hint="`cwtool daemon stop --force` kills it",
        )
    return stopped


def log_files(settings: Settings | None = None) -> list[Path]:
    """The daemon's log and those of its workers."""
    return sorted((settings or Settings()).logs.glob("*.log"))


def examine(settings: Settings | None = None, repair: bool = False, bundle: Path | None = None) -> dict[str, Any]:
    """What `cwtool doctor` finds: `checks`, and what a repair has `repaired` before. Raises InvalidInput where it cannot."""
    from cwa_daemon import bundle as zipped
    from cwa_daemon import doctor, reindex

    if bundle:
        zipped.check_target(bundle)
    settings, wrong = (settings, []) if settings else Settings.usable()
    repaired = reindex.repair(settings) if repair else []
    checks = [dataclasses.asdict(check) for check in doctor.examine(settings, wrong)]
    if bundle:
        zipped.write_bundle(settings, checks, bundle)
    return {"repaired": repaired, "checks": checks}


def install_service(force: bool) -> tuple[Path, tuple[str, ...]]:
    """Write the systemd user unit; gives its file and the commands to type next. Raises OutputError."""
    from cwa_daemon import service_unit

    return service_unit.install(Settings(), force), service_unit.NEXT


def service_text() -> str:
    """The systemd user unit as it would be written."""
    from cwa_daemon import service_unit

    return service_unit.unit_text(Settings())


async def _next_or_none(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)


_HELLO = {"major": protocol.PROTOCOL_MAJOR, "minor": protocol.PROTOCOL_MINOR, "version": __version__}
