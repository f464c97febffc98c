"""Between daemon and store: poll, follow the selected run, reconnect, and pass on what a user asks. No Textual in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from cwa_daemon.protocol import JobOptions, JobView, StatusView
from cwa_engine.base.errors import CwaError, DaemonUnreachable
from cwa_engine.base.plain import JsonMap, from_plain
from cwa_engine.rows import TopWeight
from cwa_engine.spec import RunSpec
from cwa_tui.events import read_job_event
from cwa_tui.followed_run import cut_rankings, run_after, run_with_ranking
from cwa_tui.state import ConnectionState, TuiStore

MOST_JOBS = 100
MOST_WEIGHTS = 500


class DaemonClient(Protocol):
    """What the TUI needs of `cwa_daemon.client.AsyncClient`."""

    async def jobs(self, limit: int = ...) -> list[JobView]: ...
    async def status(self) -> StatusView: ...
    def follow(self, run_id: str, after_seq: int = ...) -> AsyncIterator[JsonMap]: ...
    async def topk(
        self, run_id: str, metric: str | None = ..., offset: int = ..., limit: int = ...
    ) -> tuple[str, list[JsonMap]]: ...
    async def submit(self, spec: RunSpec, command: str = ..., options: JobOptions | None = ...) -> str: ...
    async def plan(self, spec: RunSpec, command: str = ...) -> str: ...
    async def job(self, run_id: str) -> JobView: ...
    async def retry(self, run_id: str) -> str: ...
    async def cancel(self, run_id: str) -> str: ...
    async def unload(self, model: str) -> list[str]: ...
    async def close(self) -> None: ...


Connect = Callable[[], Awaitable[DaemonClient]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen."""

    poll_s: float = 1.0  # between two requests for jobs and memory
    retry_s: float = 2.0  # between two attempts to reach a daemon that is gone
    patience_s: float = 3.0  # for an answer; the daemon answers within milliseconds unless it hangs
    redraw_s: float = 0.25
    settle_s: float = 0.1  # a cursor that runs down the list does not subscribe to every run it passes


class Session:
    """Keeps a store up to date. `connect` gives a connected client, a new one at each call."""

    def __init__(self, connect: Connect, pace: Pace) -> None:
        self.store = TuiStore()
        self.pace = pace
        self._connect = connect
        self._client: DaemonClient | None = None
        self._poll_now = asyncio.Event()
        self._selection_changed = asyncio.Event()

    async def keep_up(self, complain: Callable[[Exception], None]) -> None:
        """Poll, and follow the selected run, for ever; connect again whenever the connection fails.

        `complain` is called with the error of a run that cannot be followed. The store says that the daemon is lost.
        """
        while True:
            try:
                self._client = await self._connect()
                async with _beside(self._follow_selection(self._client, complain)):
                    await self._poll(self._client)
            except Exception as error:  # the answer to every error is the same: say so, and connect again
                self.store.lost(_as_cwa_error(error))
            await asyncio.sleep(self.pace.retry_s)
            await self.close()

    async def _poll(self, client: DaemonClient) -> None:
        while True:
            async with asyncio.timeout(self.pace.patience_s):
                jobs, status = await client.jobs(MOST_JOBS), await client.status()
            self.store.answered(jobs, status)
            self._selection_changed.set()  # the first job may be listed, or the selected one gone
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pace.poll_s):
                    await self._poll_now.wait()
            self._poll_now.clear()

    async def _follow_selection(self, client: DaemonClient, complain: Callable[[Exception], None]) -> None:
        """Follow the run that is selected, and another one as soon as another is selected."""
        while True:
            followed = self.store.job_list.selected
            async with _beside(self._follow(client, followed, complain)):
                while self.store.job_list.selected == followed:
                    await self._selection_changed.wait()
                    self._selection_changed.clear()

    async def _follow(self, client: DaemonClient, run_id: str | None, complain: Callable[[Exception], None]) -> None:
        """Take a run's events from the last known one until it has ended, then the rest of rankings that came cut."""
        if run_id is None:
            return
        await asyncio.sleep(self.pace.settle_s)
        store, run = self.store, self.store.followed_run(run_id)
        try:
            if not run.status.ended:
                async for plain in client.follow(run_id, run.last_seq):
                    store.change_run(run_id, partial(run_after, event=read_job_event(plain)))
                self._poll_now.set()
            for metric in cut_rankings(store.followed_run(run_id)):
                rows = (await client.topk(run_id, metric, limit=MOST_WEIGHTS))[1]
                weights = [from_plain(TopWeight, row) for row in rows]
                store.change_run(run_id, partial(run_with_ranking, metric=metric, weights=weights))
        except DaemonUnreachable:
            pass  # polling fails as well, says so, and connects again
        except Exception as error:
            complain(error)

    def select(self, run_id: str) -> None:
        """Select a run, which is followed from now on."""
        self.store.select(run_id)
        self._selection_changed.set()

    async def submit(self, spec: RunSpec, command: str, options: JobOptions) -> str:
        """Queue a run and select it. Raises what `AsyncClient.submit` raises."""
        return self._select_new(await self.client.submit(spec, command, options))

    async def retry(self, run_id: str) -> str:
        """Queue an ended run again and select the new one."""
        return self._select_new(await self.client.retry(run_id))

    async def cancel(self, run_id: str) -> str:
        """Cancel a run; gives its state right after."""
        state = await self.client.cancel(run_id)
        self._poll_now.set()
        return state

    async def unload(self, model: str) -> list[str]:
        """Free a warm model's memory; gives the names of what was unloaded."""
        names = await self.client.unload(model)
        self._poll_now.set()
        return names

    @property
    def client(self) -> DaemonClient:
        """The client, or DaemonUnreachable while there is none that works."""
        connection = self.store.connection
        if self._client is None or connection.state is not ConnectionState.CONNECTED:
            raise connection.trouble or DaemonUnreachable("the daemon is not reachable", hint="still trying")
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client:
            await client.close()

    def _select_new(self, run_id: str) -> str:
        self.select(run_id)
        self._poll_now.set()
        return run_id


@contextlib.asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Do some work while the block runs; at its end the work is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _as_cwa_error(error: Exception) -> CwaError:
    if isinstance(error, CwaError):
        return error
    if isinstance(error, TimeoutError):
        return DaemonUnreachable("it does not answer", hint="`cwtool daemon restart` helps")
    return DaemonUnreachable(f"{type(error).__name__}: {error}", hint="`cwtool daemon restart` helps")
