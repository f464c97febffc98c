"""A plan asked of the daemon: a job of kind "plan", followed to its end. No Textual in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from cwa_daemon.protocol import JobView
from cwa_engine.base.errors import CwaError, RunFailed
from cwa_engine.base.events import Planned
from cwa_engine.base.plain import JsonMap
from cwa_engine.rows import Plan
from cwa_engine.spec import RunSpec
from cwa_tui.store.events import read_job_event
from cwa_tui.text import format as fmt

LOOK_S = 1.0  # how often it is asked what the job waits for


class PlanClient(Protocol):
    """What is needed of `cwa_daemon.client.AsyncClient`."""

    async def plan(self, spec: RunSpec, command: str = ...) -> str: ...
    def follow(self, run_id: str, after_seq: int = ...) -> AsyncIterator[JsonMap]: ...
    async def job(self, run_id: str) -> JobView: ...
    async def cancel(self, run_id: str) -> str: ...


async def made_plan(client: PlanClient, spec: RunSpec, say: Callable[[str], None], command: str = "") -> Plan:
    """The plan of a run. `say` is called with what the job does or waits for. Cancelled, it cancels the job.

    Raises what the planning raises, such as ModelNotFound.
    """
    say("asking the daemon")
    asking = asyncio.ensure_future(client.plan(spec, command))
    try:
        run_id = await asyncio.shield(asking)  # cancelled while it is asked, it is queued all the same
        return await _watched(client, run_id, say)
    except asyncio.CancelledError:
        with contextlib.suppress(CwaError):  # the daemon may be gone, and nobody waits for this plan any more
            await client.cancel(await asking)
        raise


async def _watched(client: PlanClient, run_id: str, say: Callable[[str], None]) -> Plan:
    planning = asyncio.ensure_future(_planned(client, run_id))
    try:
        while not planning.done():
            await asyncio.wait([planning], timeout=LOOK_S)
            if not planning.done():
                say(_in_words(await client.job(run_id)))
        return planning.result()
    finally:
        planning.cancel()
        await asyncio.gather(planning, return_exceptions=True)


async def _planned(client: PlanClient, run_id: str) -> Plan:
    found: Plan | None = None
    async for plain in client.follow(run_id):
        event = read_job_event(plain)
        if event.error:
            raise event.error
        if isinstance(event.what, Planned):
            found = event.what.plan
    if found is None:
        raise RunFailed("the plan ended without a result", hint=f"`cwtool logs {run_id}` says why")
    return found


def _in_words(job: JobView) -> str:
    if job.waits_for:
        return f"waits: {job.waits_for}"
    if job.progress:
        return fmt.progress(job.progress.stage, job.progress.done, job.progress.total, 30, job.progress.unit)
    return "is being made" if job.state == "running" else job.state
