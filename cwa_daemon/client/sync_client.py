"""The client for programs that do one thing at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from cwa_daemon.base.settings import Settings
from cwa_daemon.client.answers import Result, Stopped
from cwa_daemon.client.async_client import AsyncClient
from cwa_daemon.client.fetching import RunFiles
from cwa_daemon.client.loop_thread import LoopThread, RunningLoop
from cwa_daemon.protocol import JobOptions, JobPage, JobQuery, JobView, Marks, Pruned, Sample, StatusView
from cwa_engine.base.plain import JsonMap
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.records.checksums import read_checked
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_daemon.client.reading import RunReader
    from cwa_engine.records.run_report import RunReport

T = TypeVar("T")


class Client:
    """As `AsyncClient`, for programs that do one thing at a time; also in a notebook, whose own event loop runs already."""

    def __init__(self, loop: LoopThread | RunningLoop, client: AsyncClient) -> None:
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

    @classmethod
    def beside(cls, client: AsyncClient) -> Client:
        """The same connection for threads of a program whose running loop `client` is on; that closes it."""
        return cls(RunningLoop(asyncio.get_running_loop()), client)

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

    def submit(
        self, spec: RunSpec, command: str = "", options: JobOptions | None = None, client_key: str | None = None
    ) -> str:
        return self._run(self._client.submit(spec, command, options, client_key))

    def submit_again(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        return self._run(self._client.submit_again(spec, command, options))

    def load(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        return self._run(self._client.load(spec, command, options))

    def plan(self, spec: RunSpec, command: str = "", offline: bool = False) -> str:
        return self._run(self._client.plan(spec, command, offline))

    def pull(self, spec: RunSpec, command: str = "") -> str:
        return self._run(self._client.pull(spec, command))

    def inspect(self, spec: RunSpec, target: str) -> str:
        return self._run(self._client.inspect(spec, target))

    def weight(self, spec: RunSpec, target: str, command: str = "") -> str:
        return self._run(self._client.weight(spec, target, command))

    def prompt(self, spec: PromptSpec, command: str = "") -> str:
        return self._run(self._client.prompt(spec, command))

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
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        text: str | None = None,
        since: float | None = None,
        sort: str = "created",
        descending: bool = True,
    ) -> list[JobView]:
        return self._run(
            self._client.jobs(limit, offset, state, kind, model, states, kinds, text, since, sort, descending)
        )

    def list_jobs(self, query: JobQuery | None = None) -> JobPage:
        return self._run(self._client.list_jobs(query))

    def mark(self, run_id: str, add: Sequence[str] = (), remove: Sequence[str] = (), note: str | None = None) -> Marks:
        return self._run(self._client.mark(run_id, add, remove, note))

    def marks(self) -> dict[str, Marks]:
        return self._run(self._client.marks())

    def pause(self, run_id: str | None = None) -> list[str]:
        return self._run(self._client.pause(run_id))

    def resume(self, run_id: str | None = None) -> list[str]:
        return self._run(self._client.resume(run_id))

    def prune(self, older_than_s: float, with_results: bool = False, dry_run: bool = False) -> Pruned:
        return self._run(self._client.prune(older_than_s, with_results, dry_run))

    def telemetry(self, after: float = 0.0) -> list[Sample]:
        return self._run(self._client.telemetry(after))

    def follow(self, run_id: str, after_seq: int = 0) -> Iterator[JsonMap]:
        """Events as `AsyncClient.follow` gives them. A Ctrl-C raises KeyboardInterrupt here; the connection stays usable."""
        events = self._client.follow(run_id, after_seq)
        while (event := self._run(_next_or_none(events))) is not None:
            yield event

    def results(self, limit: int = 50) -> list[JsonMap]:
        return self._run(self._client.results(limit))

    def result(self, run_id: str) -> Result:
        return self._run(self._client.result(run_id))

    def topk(
        self, run_id: str, metric: str | None = None, offset: int = 0, limit: int = 100
    ) -> tuple[str, list[JsonMap]]:
        return self._run(self._client.topk(run_id, metric, offset, limit))

    def manifest(self, run_id: str) -> JsonMap:
        return self._run(self._client.manifest(run_id))

    def read_file(self, run_id: str, name: str) -> bytes:
        return self._run(self._client.read_file(run_id, name))

    def report(self, run_id: str) -> RunReport:
        """What the files of a finished run say, typed; rankings and losses are read when they are first asked for.

        Those of a run on another machine come from its daemon, so the client is to be open then. Raises NotFound, Altered.

            print(client.report("latest").verdicts)
        """
        return self._run(self._client.report(run_id, self._read_more))

    def _read_more(self, reader: RunReader, name: str) -> bytes:
        if self.host is None:
            return read_checked(reader.folder, name, reader.fingerprint)
        return self._run(reader.read(name))

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


async def _next_or_none(events: AsyncIterator[JsonMap]) -> JsonMap | None:
    return await anext(events, None)
