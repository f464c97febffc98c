"""Between daemon and store: one loop that polls and reconnects, and what a user may ask for. No Textual in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cwa_daemon.protocol import JobView, StatusView
from cwa_engine.base.errors import CwaError, DaemonUnreachable
from cwa_engine.spec import RunSpec
from cwa_tui.state import Link, Store

MOST_JOBS = 100
MOST_WEIGHTS = 500


class DaemonClient(Protocol):
    """What the TUI needs of `cwa_daemon.client.AsyncClient`."""

    async def jobs(self, limit: int = ...) -> list[JobView]: ...
    async def status(self) -> StatusView: ...
    def follow(self, run_id: str, after_seq: int = ...) -> AsyncIterator[dict[str, Any]]: ...
    async def topk(
        self, run_id: str, metric: str | None = ..., offset: int = ..., limit: int = ...
    ) -> tuple[str, list[dict[str, Any]]]: ...
    async def submit(self, spec: RunSpec, command: str = ...) -> str: ...
    async def retry(self, run_id: str) -> str: ...
    async def cancel(self, run_id: str) -> str: ...
    async def unload(self, model: str) -> list[str]: ...
    async def close(self) -> None: ...


Connect = Callable[[], Awaitable[DaemonClient]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen."""

    poll_s: float = 1.0  # between two looks at jobs and memory
    retry_s: float = 2.0  # between two attempts to reach a daemon that is gone
    patience_s: float = 3.0  # for an answer; the daemon answers within milliseconds unless it hangs
    redraw_s: float = 0.25
    settle_s: float = 0.1  # a cursor that runs down the list does not subscribe to every run it passes


class Session:
    """Keeps a store up to date. `connect` gives a connected client, a new one at each call."""

    def __init__(self, connect: Connect, pace: Pace) -> None:
        self.store = Store()
        self.pace = pace
        self._connect = connect
        self._client: DaemonClient | None = None
        self._hurry = asyncio.Event()

    async def keep_up(self, lost: Callable[[], None]) -> None:
        """Poll for ever, with a new connection whenever one fails; `lost` is called when it does."""
        while True:
            try:
                self._client = await self._connect()
                await self._poll(self._client)
            except Exception as error:  # whatever it was, the answer is the same: say so, and connect anew
                self.store.lose(_as_cwa_error(error))
                lost()
            await asyncio.sleep(self.pace.retry_s)
            await self.close()

    async def _poll(self, client: DaemonClient) -> None:
        while True:
            async with asyncio.timeout(self.pace.patience_s):
                jobs, status = await client.jobs(MOST_JOBS), await client.status()
            self.store.update(jobs, status)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pace.poll_s):
                    await self._hurry.wait()
            self._hurry.clear()

    async def follow(self, run_id: str) -> None:
        """Fold the run's events until it has ended. Ends quietly with the connection; followed anew, it goes on from there."""
        await asyncio.sleep(self.pace.settle_s)
        run = self.store.run_state(run_id)
        with contextlib.suppress(DaemonUnreachable):
            if not run.ended:
                async for event in self.client.follow(run_id, run.last_seq):
                    run.apply(event)
                    self.store.touch()
                self._hurry.set()
            for metric in run.cut_rankings():
                run.complete(metric, (await self.client.topk(run_id, metric, limit=MOST_WEIGHTS))[1])
                self.store.touch()

    async def submit(self, spec: RunSpec, command: str) -> str:
        """Queue a run and select it. Raises what `AsyncClient.submit` raises."""
        return self._select(await self.client.submit(spec, command))

    async def retry(self, run_id: str) -> str:
        """Queue an ended run again and select the new one."""
        return self._select(await self.client.retry(run_id))

    async def cancel(self, run_id: str) -> str:
        """Ask for the end of a run; gives its state right after."""
        state = await self.client.cancel(run_id)
        self._hurry.set()
        return state

    async def unload(self, model: str) -> list[str]:
        names = await self.client.unload(model)
        self._hurry.set()
        return names

    @property
    def client(self) -> DaemonClient:
        """The client, or DaemonUnreachable while there is none that works."""
        if self._client is None or self.store.link is not Link.CONNECTED:
            raise self.store.trouble or DaemonUnreachable("the daemon is not reachable", hint="still trying")
        return self._client

    async def close(self) -> None:
        client, self._client = self._client, None
        if client:
            await client.close()

    def _select(self, run_id: str) -> str:
        self.store.select(run_id)
        self._hurry.set()
        return run_id


def _as_cwa_error(error: Exception) -> CwaError:
    if isinstance(error, CwaError):
        return error
    if isinstance(error, TimeoutError):
        return DaemonUnreachable("it does not answer", hint="`cwtool daemon restart` helps")
    return DaemonUnreachable(f"{type(error).__name__}: {error}", hint="`cwtool daemon restart` helps")
