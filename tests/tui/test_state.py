"""What the TUI knows, folded from events; no terminal in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cwa_daemon.protocol import StageProgress
from cwa_engine.base.errors import CwaError, DaemonUnreachable, RunFailed
from cwa_tui.session import Session
from cwa_tui.state import MOST_RUNS, Link, RunState, Store
from tests.tui.fake_client import BASELINE, QUICK, FakeDaemon, point, weights, whole_run


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


def folded(daemon: FakeDaemon, run_id: str) -> RunState:
    run = RunState(run_id)
    for event in daemon.events[run_id]:
        run.apply(event)
    return run


def test_a_running_job_has_a_stage_and_its_progress(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.say(run_id, "stage_started", stage="score")
    daemon.progress(run_id, "score", 3, 8)
    run = folded(daemon, run_id)
    assert (run.state, run.stage, run.ended) == ("running", "score", False)
    assert run.progress == StageProgress(stage="score", done=3, total=8, unit="sequence")


def test_a_new_stage_forgets_the_progress_of_the_last_one(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.progress(run_id, "score", 8, 8)
    daemon.say(run_id, "stage_finished", stage="score", seconds=6.8)
    daemon.say(run_id, "stage_started", stage="select")
    run = folded(daemon, run_id)
    assert run.progress is None
    assert run.seconds == {"score": 6.8}


def test_a_partial_ranking_remembers_of_how_many_sequences_it_knows(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.progress(run_id, "score", 1, 4)
    daemon.say(run_id, "topk", metric="obd", partial=True, weights=weights(5))
    daemon.progress(run_id, "score", 2, 4)
    table = folded(daemon, run_id).rankings["obd"]
    assert table.partial
    assert table.seen is not None
    assert (table.seen.done, table.seen.total) == (1, 4)


def test_a_final_ranking_takes_the_place_of_a_partial_one_metric_by_metric(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.say(run_id, "topk", metric="obd", partial=True, weights=weights(5, first=9.0))
    daemon.say(run_id, "topk", metric="magnitude", partial=True, weights=weights(5))
    daemon.say(run_id, "topk", metric="obd", partial=False, weights=weights(7))
    rankings = folded(daemon, run_id).rankings
    assert not rankings["obd"].partial
    assert len(rankings["obd"].weights) == 7
    assert rankings["magnitude"].partial


def test_damage_points_stay_in_the_order_they_were_measured(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    for measured in (point(1), point(1, "random", 0), point(10), point(10, "random", 0)):
        daemon.say(run_id, "damage", point=measured)
    cases = [(row["k"], row["selection"]) for row in folded(daemon, run_id).damage.values()]
    assert cases == [(1, "critical"), (1, "random"), (10, "critical"), (10, "random")]


def test_an_event_that_comes_twice_counts_once(daemon: FakeDaemon) -> None:
    run = folded(daemon, whole_run(daemon, "a"))
    lines = list(run.lines)
    for event in daemon.events["a"]:
        run.apply(event)
    assert list(run.lines) == lines
    assert run.last_seq == len(daemon.events["a"])


def test_an_event_of_a_kind_nobody_knows_yet_is_skipped(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.say(run_id, "ablation_measured", table=[1, 2])
    assert folded(daemon, run_id).last_seq == 3


def test_a_failed_run_keeps_its_error_and_says_it_in_the_log(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.end(run_id, "failed", RunFailed("the loss is inf", hint="try --dtype float32"))
    run = folded(daemon, run_id)
    assert run.ended
    assert run.error is not None
    assert run.error["hint"] == "try --dtype float32"
    assert (run.lines[-1].text, run.lines[-1].level) == ("failed: the loss is inf", "error")


def test_a_whole_run_folds_into_baseline_ranking_and_damage(daemon: FakeDaemon) -> None:
    run = folded(daemon, whole_run(daemon, "a"))
    assert run.baseline == BASELINE
    assert len(run.rankings["grad_x_weight"].weights) == 10
    assert len(run.damage) == 2 * (1 + 3)


def test_the_store_forgets_the_run_that_was_not_looked_at_for_longest() -> None:
    store = Store()
    first = store.run_state("0")
    for number in range(1, MOST_RUNS):
        store.run_state(str(number))
    assert store.run_state("0") is first
    store.run_state("one more")
    assert store.run_state("0") is first
    store.run_state("1").last_seq = 7  # "1" was forgotten, and begins anew
    assert store.run_state("1").last_seq == 7


async def test_the_selection_survives_new_jobs_and_falls_to_the_latest_when_it_is_gone(daemon: FakeDaemon) -> None:
    client = await daemon.connect()
    store = Store()
    daemon.add("a")
    store.update(await client.jobs(), await client.status())
    assert store.selected == "a"
    daemon.add("b")
    store.update(await client.jobs(), await client.status())
    assert store.selected == "a"
    del daemon.jobs["a"]
    store.update(await client.jobs(), await client.status())
    assert store.selected == "b"


async def test_a_run_submitted_a_moment_ago_stays_selected_though_it_is_not_listed_yet(daemon: FakeDaemon) -> None:
    client = await daemon.connect()
    store = Store()
    daemon.add("a")
    before = await client.jobs()
    store.select(daemon.add("b"))
    store.update(before, await client.status())
    assert store.selected == "b"


async def test_a_lost_daemon_leaves_what_is_known_and_events_go_on_where_they_were(daemon: FakeDaemon) -> None:
    losses: list[str] = []
    session = Session(daemon.connect, QUICK)
    daemon.say(daemon.run("a"), "damage", point=point(1))
    polling = asyncio.create_task(session.keep_up(lambda: losses.append("lost")))
    try:
        await eventually(lambda: session.store.link is Link.CONNECTED)
        following = asyncio.create_task(session.follow("a"))
        await eventually(lambda: len(session.store.run_state("a").damage) == 1)
        daemon.lose()
        await eventually(lambda: session.store.link is Link.LOST)
        await asyncio.wait_for(following, 5)  # ends without an error: the poll loop tells of the loss
        assert losses
        assert [job.run_id for job in session.store.jobs] == ["a"]
        with pytest.raises(DaemonUnreachable):
            await session.cancel("a")

        daemon.say("a", "damage", point=point(10))
        daemon.reachable = True
        await eventually(lambda: session.store.link is Link.CONNECTED)
        daemon.end("a")
        await asyncio.wait_for(session.follow("a"), 5)
        assert len(session.store.run_state("a").damage) == 2
    finally:
        polling.cancel()


async def test_an_unexpected_error_while_polling_is_told_and_tried_again(daemon: FakeDaemon) -> None:
    failures = iter([ValueError("a view of another version"), TimeoutError()])
    told: list[CwaError] = []

    async def connect() -> object:
        if error := next(failures, None):
            raise error
        return await daemon.connect()

    session = Session(connect, QUICK)  # type: ignore[arg-type]

    def lost() -> None:
        assert session.store.trouble
        told.append(session.store.trouble)

    polling = asyncio.create_task(session.keep_up(lost))
    try:
        await eventually(lambda: session.store.link is Link.CONNECTED)
    finally:
        polling.cancel()
    assert [error.message for error in told] == ["ValueError: a view of another version", "it does not answer"]


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nobody tells a test what became true
            await asyncio.sleep(0)
