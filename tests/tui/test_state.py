"""What the TUI knows, from a daemon's answers and events; no terminal in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from cwa_daemon.protocol import JobPage
from cwa_engine.base.errors import DaemonUnreachable, RunFailed
from cwa_engine.base.events import Progress
from cwa_engine.base.plain import from_plain
from cwa_engine.records.tables import topk_table
from cwa_engine.rows import Baseline, TopWeight
from cwa_tui.store.events import read_job_event
from cwa_tui.store.followed_run import FollowedRun, run_after
from cwa_tui.store.session import DaemonClient, Session
from cwa_tui.store.state import MOST_RUNS, ConnectionState, TuiStore
from cwa_tui.tables.ranking import RankingRows
from tests.tui.fake_client import BASELINE, QUICK, FakeDaemon, point, weights, whole_run


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


def followed(daemon: FakeDaemon, run_id: str) -> FollowedRun:
    """The run after all its events."""
    run = FollowedRun(run_id)
    for plain in daemon.events[run_id]:
        run = run_after(run, read_job_event(plain))
    return run


def test_a_running_job_has_a_stage_and_its_progress(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.say(run_id, "stage_started", stage="score")
    daemon.progress(run_id, "score", 3, 8)
    run = followed(daemon, run_id)
    assert (run.status.state, run.status.stage, run.status.ended) == ("running", "score", False)
    assert run.status.progress == Progress(stage="score", done=3, total=8, unit="sequence")


def test_a_new_stage_forgets_the_progress_of_the_last_one(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.progress(run_id, "score", 8, 8)
    daemon.say(run_id, "stage_finished", stage="score", seconds=6.8)
    daemon.say(run_id, "stage_started", stage="select")
    status = followed(daemon, run_id).status
    assert (status.stage, status.progress) == ("select", None)


def test_a_job_whose_worker_died_begins_again_without_the_stage_it_was_in(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.progress(run_id, "score", 3, 8)
    daemon.say(run_id, "state", state="queued", error=None)
    status = followed(daemon, run_id).status
    assert (status.state, status.stage, status.progress) == ("queued", None, None)


def test_a_partial_ranking_remembers_of_how_many_sequences_it_knows(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.progress(run_id, "score", 1, 4)
    daemon.say(run_id, "topk", metric="obd", partial=True, weights=weights(5))
    daemon.progress(run_id, "score", 2, 4)
    table = followed(daemon, run_id).rankings["obd"]
    assert table.partial
    assert table.seen is not None
    assert (table.seen.done, table.seen.total) == (1, 4)


def test_a_final_ranking_takes_the_place_of_a_partial_one_metric_by_metric(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.say(run_id, "topk", metric="obd", partial=True, weights=weights(5, first=9.0))
    daemon.say(run_id, "topk", metric="magnitude", partial=True, weights=weights(5))
    daemon.say(run_id, "topk", metric="obd", partial=False, weights=weights(7))
    rankings = followed(daemon, run_id).rankings
    assert not rankings["obd"].partial
    assert len(rankings["obd"].weights) == 7
    assert rankings["magnitude"].partial


def test_damage_points_stay_in_the_order_they_were_measured(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    for measured in (point(1), point(1, "random", 0), point(10), point(10, "random", 0)):
        daemon.say(run_id, "damage", point=measured)
    cases = [(point.k, point.selection) for point in followed(daemon, run_id).damage.values()]
    assert cases == [(1, "critical"), (1, "random"), (10, "critical"), (10, "random")]


def test_an_event_that_comes_twice_counts_once(daemon: FakeDaemon) -> None:
    run = followed(daemon, whole_run(daemon, "a"))
    again = run
    for plain in daemon.events["a"]:
        again = run_after(again, read_job_event(plain))
    assert again is run
    assert run.last_seq == len(daemon.events["a"])


def test_an_event_of_a_kind_nobody_knows_yet_is_skipped(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.say(run_id, "ablation_measured", table=[1, 2])
    assert followed(daemon, run_id).last_seq == 3


def test_a_failed_run_keeps_its_error_and_says_it_in_the_log(daemon: FakeDaemon) -> None:
    run_id = daemon.run("a")
    daemon.end(run_id, "failed", RunFailed("the loss is inf", hint="try --dtype float32"))
    run = followed(daemon, run_id)
    assert run.status.ended
    assert isinstance(run.status.error, RunFailed)
    assert run.status.error.hint == "try --dtype float32"
    assert (run.log.lines[-1].text, run.log.lines[-1].level) == ("failed: the loss is inf", "error")


def test_a_whole_run_is_a_baseline_a_ranking_and_damage(daemon: FakeDaemon) -> None:
    run = followed(daemon, whole_run(daemon, "a"))
    assert run.status.baseline == from_plain(Baseline, BASELINE)
    assert len(run.rankings["grad_x_weight"].weights) == 10
    assert len(run.damage) == 2 * (1 + 3)


def test_the_store_forgets_the_run_that_was_not_looked_at_for_longest() -> None:
    store = TuiStore()
    first = store.followed_run("0")
    for number in range(1, MOST_RUNS):
        store.followed_run(str(number))
    assert store.followed_run("0") is first
    second = store.followed_run("1")
    store.followed_run("0")
    for number in range(MOST_RUNS - 1):
        store.followed_run(f"one more {number}")
    assert store.followed_run("0") is first
    assert store.followed_run("1") is not second


def listed(store: TuiStore, daemon: FakeDaemon) -> None:
    jobs = list(reversed(daemon.jobs.values()))
    store.listed(JobPage(jobs, len(jobs)), 0, JobPage([], 0))


def test_the_selection_survives_new_jobs_and_pages_that_it_is_not_on(daemon: FakeDaemon) -> None:
    store = TuiStore()
    daemon.add("a")
    listed(store, daemon)
    assert store.job_list.selected == "a"
    daemon.add("b")
    listed(store, daemon)
    assert store.job_list.selected == "a"
    store.listed(JobPage([daemon.jobs["b"]], 2), 1, JobPage([], 0))
    assert store.job_list.selected == "a" and store.job_list.offset == 1


def test_a_run_submitted_a_moment_ago_stays_selected_though_it_is_not_listed_yet(daemon: FakeDaemon) -> None:
    store = TuiStore()
    daemon.add("a")
    store.select("b")
    listed(store, daemon)
    assert store.job_list.selected == "b"


async def test_the_clock_stands_still_while_the_daemon_is_lost(daemon: FakeDaemon) -> None:
    time = iter(range(100, 200))
    store = TuiStore(lambda: float(next(time)))
    assert store.now() < store.now()
    store.answered(await (await daemon.connect()).status())
    store.lost(DaemonUnreachable("it is gone"))
    assert store.now() == store.now() == store.answered_at


@pytest.fixture
async def session(daemon: FakeDaemon) -> AsyncIterator[Session]:
    """A session that keeps up with the daemon, and has nothing to complain about."""
    session, complaints = Session(daemon.connect, QUICK), list[Exception]()
    keeping_up = asyncio.create_task(session.keep_up(complaints.append))
    yield session
    keeping_up.cancel()
    assert complaints == []


def is_connected(session: Session) -> bool:
    return session.store.connection.state is ConnectionState.CONNECTED


async def test_the_session_follows_the_runs_that_screens_watch(daemon: FakeDaemon, session: Session) -> None:
    for run_id in ("a", "b"):
        daemon.say(daemon.run(run_id), "damage", point=point(1))
    store = session.store
    session.watch("one screen", ["b"])
    await eventually(lambda: len(store.followed_run("b").damage) == 1)
    assert not store.followed_run("a").damage
    session.watch("another screen", ["a"])
    await eventually(lambda: len(store.followed_run("a").damage) == 1)
    session.unwatch("one screen")
    daemon.say("b", "damage", point=point(10))
    daemon.say("a", "damage", point=point(10))
    await eventually(lambda: len(store.followed_run("a").damage) == 2)
    assert len(store.followed_run("b").damage) == 1
    session.watch("one screen", ["a", "b"])
    await eventually(lambda: len(store.followed_run("b").damage) == 2)


async def test_a_run_is_followed_before_the_daemon_has_it(daemon: FakeDaemon, session: Session) -> None:
    await eventually(lambda: is_connected(session))
    daemon.say(daemon.run("a"), "damage", point=point(1))
    session.watch("a screen", ["a"])
    await eventually(lambda: len(session.store.followed_run("a").damage) == 1)
    assert session.store.run("a").job is not None


async def test_jobs_are_listed_as_the_query_has_it(daemon: FakeDaemon, session: Session) -> None:
    for number in range(150):
        daemon.add(f"run-{number}", kind="plan" if number % 3 == 0 else "run")
    await eventually(lambda: session.store.job_list.total == 100)
    assert {job.kind for job in session.store.job_list.jobs} == {"run"}
    assert {job.kind for job in session.store.active.jobs} == {"plan", "run"}
    assert session.store.active.total == 150, "of every kind, the oldest first"
    assert session.store.active.jobs[0].run_id == "run-0"
    session.ask(replace(session.store.query, text="run-14"))
    await eventually(lambda: session.store.job_list.total == 8)  # 14, 140, 142, 143, 145, 146, 148, 149


async def test_a_whole_ranking_comes_when_it_is_wanted(daemon: FakeDaemon, session: Session) -> None:
    whole_run(daemon, "a")
    table = topk_table("grad_x_weight")
    rows = [from_plain(TopWeight, row) for row in weights(3000)]
    daemon.files["a", table.name] = table.to_bytes(rows)
    await eventually(lambda: is_connected(session))
    session.want_ranking("a", "grad_x_weight")
    await eventually(lambda: session.store.ranking("a", "grad_x_weight"))
    assert list(session.store.ranking("a", "grad_x_weight") or []) == rows


async def test_a_run_without_files_says_why(daemon: FakeDaemon, session: Session) -> None:
    whole_run(daemon, "a")
    session.watch("a screen", ["a"])
    await eventually(lambda: session.store.why_no_report("a"))
    assert "has no result" in str(session.store.why_no_report("a"))


async def test_a_daemon_is_started_when_the_user_asks_for_it(daemon: FakeDaemon, session: Session) -> None:
    await eventually(lambda: is_connected(session))
    daemon.lose()
    await eventually(lambda: session.store.connection.state is ConnectionState.LOST)
    assert daemon.started == 0
    session.start_daemon()
    await eventually(lambda: is_connected(session))
    assert daemon.started == 1 and not session.store.connection.starting


async def test_a_lost_daemon_leaves_what_is_known_and_events_go_on_where_they_were(
    daemon: FakeDaemon, session: Session
) -> None:
    store = session.store
    daemon.say(daemon.run("a"), "damage", point=point(1))
    session.watch("a screen", ["a"])
    await eventually(lambda: len(store.followed_run("a").damage) == 1 and store.job_list.jobs)
    daemon.lose()
    await eventually(lambda: store.connection.state is ConnectionState.LOST)
    assert [job.run_id for job in store.job_list.jobs] == ["a"]
    with pytest.raises(DaemonUnreachable):
        await session.cancel("a")

    daemon.say("a", "damage", point=point(10))
    daemon.reachable = True
    daemon.end("a")
    await eventually(lambda: store.followed_run("a").status.ended)
    assert len(store.followed_run("a").damage) == 2


async def test_a_run_that_cannot_be_followed_is_complained_about_and_polling_goes_on(daemon: FakeDaemon) -> None:
    complaints: list[Exception] = []
    session = Session(daemon.connect, QUICK)
    session.watch("a screen", [daemon.run("a")])
    daemon.say("a", "damage", point={"metric": "obd"})  # of another version
    keeping_up = asyncio.create_task(session.keep_up(complaints.append))
    try:
        await eventually(lambda: complaints)
        daemon.add("b")
        await eventually(lambda: len(session.store.job_list.jobs) == 2)
    finally:
        keeping_up.cancel()
    (error,) = complaints
    assert "an event of kind 'damage' comes from another version" in str(error)


async def test_an_unexpected_error_while_polling_is_told_and_tried_again(daemon: FakeDaemon) -> None:
    failures = iter([ValueError("a view of another version"), TimeoutError()])
    told: list[str] = []

    async def connect(start: bool) -> DaemonClient:
        if trouble := trying.store.connection.trouble:
            told.append(trouble.message)
        if error := next(failures, None):
            raise error
        return await daemon.connect()

    trying = Session(connect, QUICK)
    keeping_up = asyncio.create_task(trying.keep_up(lambda error: None))
    try:
        await eventually(lambda: is_connected(trying))
    finally:
        keeping_up.cancel()
    assert told == ["ValueError: a view of another version", "it does not answer"]


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  nobody tells a test what became true
            await asyncio.sleep(0)


def test_rankings_are_forgotten_once_they_have_too_many_weights_together_the_one_looked_at_last_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cwa_tui.store.state.MOST_RANKED", 5)
    store = TuiStore()
    two = RankingRows.of([from_plain(TopWeight, row) for row in weights(2)])
    store.keep_ranking("run", "first", two)
    store.keep_ranking("run", "second", two)
    assert store.ranking("run", "first") is two
    store.keep_ranking("run", "third", two)
    assert [store.ranking("run", name) is two for name in ("first", "second", "third")] == [True, False, True]
