"""A plan asked of the daemon: what it says while it waits, and what becomes of it when nobody wants it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import cwa_tui.store.plan_job
from cwa_daemon.protocol import JobView
from cwa_engine.base.errors import DaemonUnreachable, ModelNotFound, RunFailed
from cwa_engine.rows import Plan, to_plain
from cwa_engine.spec import RunSpec
from cwa_tui.store.plan_job import made_plan
from tests.tui.fake_client import until

SPEC = RunSpec(model="gpt2")
PLAN = Plan("gpt2", 1, "cpu", 100, 0, 1, 1, ("grad_x_weight",), (), "cwtool run --model gpt2", "it fits")


class Daemon:
    """Gives `events` to those who follow the plan, once `may_go_on` is set."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = events
        self.may_queue, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.may_queue.set()
        self.asked: list[RunSpec] = []
        self.cancelled: list[str] = []

    async def plan(self, spec: RunSpec, command: str = "") -> str:
        self.asked.append(spec)
        await self.may_queue.wait()
        return "the-plan"

    async def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[dict[str, Any]]:
        await self.may_go_on.wait()
        for number, event in enumerate(self._events, 1):
            yield {"seq": number, "time": 0.0, **event}

    async def job(self, run_id: str) -> JobView:
        return JobView(
            run_id=run_id,
            kind="plan",
            state="queued",
            model="gpt2",
            spec={},
            device="cpu",
            created=0.0,
            waits_for="r788 is planned",
        )

    async def cancel(self, run_id: str) -> str:
        self.cancelled.append(run_id)
        return "cancelled"


DONE = ({"kind": "plan", "plan": to_plain(PLAN)}, {"kind": "state", "state": "done", "error": None})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cwa_tui.store.plan_job, "LOOK_S", 0.005)


async def test_a_plan_says_what_it_waits_for_and_then_comes() -> None:
    daemon = Daemon(*DONE)
    said: list[str] = []
    planning = asyncio.ensure_future(made_plan(daemon, SPEC, said.append))
    await until(lambda: "waits: r788 is planned" in said)
    daemon.may_go_on.set()
    assert await planning == PLAN
    assert daemon.cancelled == []


async def test_a_plan_that_nobody_wants_any_more_is_cancelled() -> None:
    daemon = Daemon(*DONE)
    said: list[str] = []
    planning = asyncio.ensure_future(made_plan(daemon, SPEC, said.append))
    await until(lambda: len(said) > 1)
    planning.cancel()
    await asyncio.wait([planning])
    assert daemon.cancelled == ["the-plan"]


async def test_one_that_is_dropped_while_it_is_asked_for_is_cancelled_as_well() -> None:
    daemon = Daemon(*DONE)
    daemon.may_queue.clear()
    planning = asyncio.ensure_future(made_plan(daemon, SPEC, lambda said: None))
    await until(lambda: daemon.asked)
    planning.cancel()
    daemon.may_queue.set()
    await asyncio.wait([planning])
    assert planning.cancelled()
    assert daemon.cancelled == ["the-plan"]


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([{"kind": "state", "state": "failed", "error": ModelNotFound("there is no x").to_dict()}], ModelNotFound),
        ([{"kind": "state", "state": "done", "error": None}], RunFailed),
    ],
)
async def test_a_plan_that_fails_raises_why(events: list[dict[str, Any]], kind: type[Exception]) -> None:
    daemon = Daemon(*events)
    daemon.may_go_on.set()
    with pytest.raises(kind):
        await made_plan(daemon, SPEC, lambda said: None)


async def test_a_daemon_that_is_gone_when_a_plan_is_dropped_is_no_error() -> None:
    daemon = Daemon(*DONE)

    async def gone(run_id: str) -> str:
        raise DaemonUnreachable("gone")

    daemon.cancel = gone  # type: ignore[method-assign]
    planning = asyncio.ensure_future(made_plan(daemon, SPEC, lambda said: None))
    await until(lambda: daemon.asked)
    planning.cancel()
    await asyncio.wait([planning])
    assert planning.cancelled()
