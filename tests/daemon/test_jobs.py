"""The store, the life of a job, and which models stay warm, without processes."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import queue, waits
from cwa_daemon.control.copies import Copies
from cwa_daemon.control.database import SCHEMA_VERSION
from cwa_daemon.control.job import Job
from cwa_daemon.control.jobs import Jobs
from cwa_daemon.control.pruning import prune
from cwa_daemon.control.states import MOVES
from cwa_daemon.control.store import Store
from cwa_daemon.pipe.messages import PlanMemory
from cwa_daemon.protocol import JobOptions, JobQuery, JobState
from cwa_daemon.worker.residency import ModelKey, Residency, Resident
from cwa_engine.base.errors import (
    DaemonNotStartable,
    DoesNotFit,
    InvalidInput,
    NotFound,
    OutputTaken,
    QueueFull,
    StateNotWritten,
)
from cwa_engine.records.run_id import new_run_id
from cwa_engine.spec import RunSpec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs.sqlite")


def add(store: Store, run_id: str, **columns: object) -> None:
    fields: dict[str, object] = {
        "kind": "run",
        "state": "queued",
        "spec": RunSpec(model="gpt2").model_dump(mode="json"),
        "command": "",
        "device": "cpu",
        "client_key": run_id,
        "created": 0.0,
    }
    store.add_job(run_id=run_id, **{**fields, **columns})


def test_events_are_numbered_from_one_without_gaps_and_replayed_from_any_point(store: Store) -> None:
    stored = [store.append_event("a", {"kind": "note", "text": str(i), "level": "info"}) for i in range(5)]
    store.append_event("b", {"kind": "note", "text": "another job's", "level": "info"})
    assert [event["seq"] for event in stored] == [1, 2, 3, 4, 5]
    assert list(store.events("a", after_seq=0, limit=9)) == stored
    assert [event["text"] for event in store.events("a", after_seq=2, limit=2)] == ["2", "3"]
    assert store.last_seq("b") == 1


def test_the_queue_of_a_device_is_first_in_first_out(store: Store) -> None:
    add(store, "first")
    add(store, "second")
    add(store, "elsewhere", device="cuda:0")
    assert [job.run_id for job in store.runnable("cpu")] == ["first", "second"]
    store.update_job("first", state="done")
    assert [job.run_id for job in store.runnable("cpu")] == ["second"]
    assert sorted(store.lanes_with_queued_jobs()) == ["cpu", "cuda:0"]


def test_a_store_of_another_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    store.close()
    before = (tmp_path / "jobs.sqlite").read_bytes()
    with pytest.raises(DaemonNotStartable, match="newer version"):
        Store(tmp_path / "jobs.sqlite")
    assert (tmp_path / "jobs.sqlite").read_bytes() == before


def test_a_damaged_store_is_named_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DaemonNotStartable, match="is damaged") as raised:
        Store(tmp_path / "jobs.sqlite")
    assert "cwtool doctor --repair" in raised.value.hint
    assert (tmp_path / "jobs.sqlite").read_bytes() == b"not a database" * 100


def test_the_version_grows_with_every_change_and_from_one_daemon_to_the_next(store: Store, tmp_path: Path) -> None:
    versions = [store.version]
    for change in (
        lambda: add(store, "a"),
        lambda: store.update_job("a", state="running"),
        lambda: store.append_event("a", {"kind": "progress", "done": 1}),
        lambda: store.remove_job("a"),
    ):
        change()
        versions.append(store.version)
    assert versions == sorted(set(versions))
    store.jobs()
    store.events("a", 0, 10)
    assert store.version == versions[-1]
    assert Store(tmp_path / "jobs.sqlite").version > versions[-1]


RELEASES = sorted((Path(__file__).parent / "databases").glob("schema-*.sqlite"))


@pytest.mark.parametrize("frozen", RELEASES, ids=lambda path: path.stem)
def test_a_database_of_every_earlier_schema_is_brought_up_to_date_and_keeps_its_jobs(
    frozen: Path, tmp_path: Path
) -> None:
    shutil.copy(frozen, tmp_path / "jobs.sqlite")
    before = sqlite3.connect(frozen).execute("SELECT run_id, state FROM jobs ORDER BY number DESC").fetchall()
    store = Store(tmp_path / "jobs.sqlite")
    assert [(job.run_id, job.state) for job in store.jobs()] == before
    assert [job.run_id for job in store.runnable("cpu")] == [run_id for run_id, state in before if state == "queued"]
    assert all(list(store.events(run_id, 0, 100)) for run_id, _ in before)
    store.close()
    Store(tmp_path / "jobs.sqlite").close()  # once more changes nothing


def test_there_is_a_frozen_database_of_every_earlier_schema() -> None:
    assert [path.stem for path in RELEASES] == [f"schema-{number}" for number in range(1, SCHEMA_VERSION)]


def test_jobs_are_paged_and_filtered_by_state_kind_and_part_of_a_models_name(store: Store) -> None:
    for number in range(5):
        add(store, f"run{number}", state="done" if number % 2 else "queued")
    add(store, "other", kind="load", spec=RunSpec(model="EleutherAI/pythia-70m").model_dump(mode="json"))
    assert [job.run_id for job in store.page(JobQuery(limit=2, offset=1))] == ["run4", "run3"]
    assert [job.run_id for job in store.jobs(state="done")] == ["run3", "run1"]
    assert [job.run_id for job in store.jobs(kind="load")] == ["other"]
    assert [job.run_id for job in store.page(JobQuery(model="PYTHIA"))] == ["other"]


def test_an_ended_job_never_moves_again() -> None:
    for state in (JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED):
        assert MOVES[state] == frozenset()


@pytest.mark.parametrize(
    ("model", "slug"),
    [("EleutherAI/pythia-1.4b", "pythia-1.4b"), ("/data/My Model/", "my-model"), ("///", "model"), ("gpt2", "gpt2")],
)
def test_a_run_id_tells_when_and_what(model: str, slug: str) -> None:
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{re.escape(slug)}-[a-z2-9]{{4}}", new_run_id(model))


class QuietLane:
    """A lane that never runs anything, so that only the queue's own rules are at work."""

    def __init__(self, device: str, *args: object) -> None:
        self.device = device

    def wake(self) -> None: ...

    def check_health(self) -> None: ...

    def must_wait(self, run_id: str) -> bool:
        return False

    def is_warm(self, job: Job) -> bool:
        return False

    def obstacle(self, job: Job) -> str:
        return ""

    def plan_memory(self) -> PlanMemory:
        return PlanMemory(free_bytes=2**30)

    def waits_for(self, job: Job, before: Sequence[str]) -> str:
        return waits.for_queued(before)


class TestJobs:
    """The queue's rules."""

    @pytest.fixture
    def jobs(self, tmp_path: Path, store: Store) -> Jobs:
        settings = Settings(home=tmp_path, max_queue=3)
        return Jobs(store, settings, on_event=lambda run_id, event: None, make_lane=QuietLane)  # type: ignore[arg-type]

    def submit(self, jobs: Jobs, key: str, **options: Any) -> str:
        spec = RunSpec(model="gpt2").model_dump(mode="json")
        return jobs.submit("run", spec, "cpu", key, "cwtool run", {}, JobOptions(**options))

    def test_the_same_client_key_never_queues_twice(self, jobs: Jobs, store: Store) -> None:
        assert self.submit(jobs, "key") == self.submit(jobs, "key")
        assert store.count("queued") == 1

    def test_a_full_queue_refuses(self, jobs: Jobs) -> None:
        for key in "abc":
            self.submit(jobs, key)
        with pytest.raises(QueueFull):
            self.submit(jobs, "d")

    def test_a_job_is_found_by_its_ending_and_an_unclear_one_is_refused(self, jobs: Jobs) -> None:
        run_id = self.submit(jobs, "a")
        assert jobs.find(run_id[-4:]).run_id == run_id
        self.submit(jobs, "b")
        with pytest.raises(InvalidInput, match="may be 2 runs"):
            jobs.find(run_id[:8])
        with pytest.raises(NotFound):
            jobs.find("")
        with pytest.raises(NotFound):
            jobs.find("%")

    def test_what_ran_when_daemon_and_worker_died_is_queued_again_in_its_place(self, jobs: Jobs, store: Store) -> None:
        add(store, "20260101-000000-gpt2-abcd", state="running")
        later = self.submit(jobs, "later")
        jobs.recover()
        jobs.outcomes.settle("cpu", None)
        assert [job.run_id for job in store.runnable("cpu")] == ["20260101-000000-gpt2-abcd", later]
        (death,) = jobs.find("20260101-000000-gpt2-abcd").deaths
        assert (death["cause"], death["reason"]) == ("others", "the daemon ended while this ran")

    def test_a_hub_token_is_in_memory_alone(self, jobs: Jobs, tmp_path: Path) -> None:
        spec = RunSpec(model="gpt2").model_dump(mode="json")
        run_id = jobs.submit("run", spec, "cpu", "key", "", {"token": "hf_secret"}, JobOptions())
        assert jobs.dispatcher.command_for(jobs.find(run_id)).access["token"] == "hf_secret"
        jobs.cancel(run_id)
        assert (
            jobs.dispatcher.command_for(jobs.find(run_id)).access["token"] == ""
        )  # none, which is not the daemon's own
        assert all(b"hf_secret" not in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())

    def test_a_higher_priority_goes_first_and_a_successor_waits(self, jobs: Jobs, store: Store) -> None:
        first = self.submit(jobs, "a")
        successor = self.submit(jobs, "b", after=first, priority=5)
        urgent = self.submit(jobs, "c", priority=1)
        assert [job.run_id for job in store.runnable("cpu")] == [urgent, first]
        store.update_job(first, state="done")
        assert [job.run_id for job in store.runnable("cpu")] == [successor, urgent]

    def test_who_was_to_follow_a_job_that_is_cancelled_is_cancelled_and_told_why(self, jobs: Jobs) -> None:
        first = self.submit(jobs, "a")
        second = self.submit(jobs, "b", after=first)
        third = self.submit(jobs, "c", after=second)
        jobs.cancel(first)
        assert [jobs.find(run_id).state for run_id in (second, third)] == ["cancelled", "cancelled"]
        error = jobs.find(second).error
        assert error and first in error["message"]
        with pytest.raises(InvalidInput, match="nothing can wait"):
            self.submit(jobs, "d", after=first)

    def test_a_paused_job_keeps_its_place_and_is_not_due(self, jobs: Jobs, store: Store) -> None:
        first, second = self.submit(jobs, "a"), self.submit(jobs, "b")
        assert jobs.pause(first[-4:]) == [first]
        assert [job.run_id for job in store.runnable("cpu")] == [second]
        with pytest.raises(InvalidInput, match="is paused, not queued"):
            jobs.pause(first)
        assert jobs.pause(None) == [second]
        assert sorted(jobs.resume(None)) == sorted([first, second])
        assert [job.run_id for job in store.runnable("cpu")] == [first, second]

    def test_a_run_whose_folder_is_whole_is_done(self, jobs: Jobs, store: Store, tmp_path: Path) -> None:
        add(store, "20260101-000000-gpt2-abcd", state="running")
        (tmp_path / "runs" / "20260101-000000-gpt2-abcd").mkdir(parents=True)
        jobs.recover()
        jobs.outcomes.settle("cpu", None)
        assert jobs.find("20260101-000000-gpt2-abcd").state == "done"

    async def test_a_run_that_was_saved_but_not_copied_to_its_output_is_done_and_copied(
        self, jobs: Jobs, store: Store, tmp_path: Path
    ) -> None:
        spec = RunSpec(model="gpt2", output=tmp_path / "mine").model_dump(mode="json")
        add(store, "20260101-000000-gpt2-abcd", state="running", spec=spec)
        folder = tmp_path / "runs" / "20260101-000000-gpt2-abcd"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
        (folder / "manifest.json").write_text(json.dumps({"spec": spec, "tables": {}}))
        jobs.recover()
        jobs.outcomes.settle("cpu", None)
        job = jobs.find("20260101-000000-gpt2-abcd")
        assert job.copy_error and (job.state, job.copy_error["code"]) == ("done", "copy_pending")
        await asyncio.gather(*jobs.copies._tasks.values())
        assert jobs.find("20260101-000000-gpt2-abcd").copy_error is None
        assert (tmp_path / "mine" / "summary.json").read_text() == "{}"
        last = store.events("20260101-000000-gpt2-abcd", 0, 10)[-1]
        assert (last["kind"], last["folder"], last["error"]) == ("copied", str(tmp_path / "mine"), None)

    async def test_a_copy_that_no_time_mends_is_told_apart_from_the_run_and_until_it_is_made_nothing_is_pruned(
        self, jobs: Jobs, store: Store, tmp_path: Path
    ) -> None:
        spec = RunSpec(model="gpt2", output=tmp_path / "mine").model_dump(mode="json")
        add(store, "saved", state="running", spec=spec)
        (tmp_path / "runs" / "saved").mkdir(parents=True)
        (tmp_path / "runs" / "saved" / "manifest.json").write_text(json.dumps({"spec": spec, "tables": {}}))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "notes.txt").write_text("of somebody else")
        jobs.outcomes.settle("cpu", None)
        with pytest.raises(OutputTaken, match="saved, which is done, is to write"):
            other = RunSpec(model="gpt2", seed=1, output=tmp_path / "mine").model_dump(mode="json")
            jobs.submit("run", other, "cpu", "key", "", {}, JobOptions())
        assert prune(store, tmp_path / "runs", -1, with_results=True, dry_run=True).runs == []
        await asyncio.gather(*jobs.copies._tasks.values())
        job = jobs.view(jobs.find("saved"))
        assert (job.state, job.error, job.copying) == ("done", None, False)
        assert job.copy_error and job.copy_error["code"] == "output_taken"
        assert "cwtool results fetch saved --output FOLDER" in job.copy_error["hint"]
        assert prune(store, tmp_path / "runs", -1, with_results=False, dry_run=False).runs == ["saved"]
        assert [event["kind"] for event in store.events("saved", 0, 9)] == ["state", "copied"]  # how it ended stays

    async def test_runs_for_the_same_folder_are_copied_one_after_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_work: list[str] = []
        order: list[str] = []

        def copy(folder: Path, output: Path, force: bool) -> None:
            at_work.append(folder.name)
            order.append(folder.name)
            assert len(at_work) == 1, at_work
            time.sleep(0.01)  # in a thread of its own: the other one would come in between
            at_work.clear()

        monkeypatch.setattr("cwa_daemon.control.copies.copy_run", copy)
        ended: list[tuple[str, object]] = []
        copies = Copies(lambda run_id, text: None, lambda run_id, error: ended.append((run_id, error)))
        for run_id in ("first", "second", "third"):
            copies.begin(run_id, tmp_path / run_id, tmp_path / "out", force=False)
        await asyncio.gather(*copies._tasks.values())
        assert order == ["first", "second", "third"]
        assert ended == [("first", None), ("second", None), ("third", None)]

    def test_states_that_a_full_disk_does_not_take_are_written_in_their_order_and_nothing_is_begun_twice(
        self, jobs: Jobs, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_id = self.submit(jobs, "a")

        def full(*args: object, **columns: object) -> None:
            raise StateNotWritten("database or disk is full")

        with monkeypatch.context() as disk:
            disk.setattr(store, "update_job", full)
            jobs.ledger.move(run_id, JobState.RUNNING)
            jobs.ledger.move(run_id, JobState.DONE)
            assert jobs.dispatcher.next_due(QuietLane("cpu")) is None  # type: ignore[arg-type]
        assert jobs.find(run_id).state == "queued"
        jobs.tick()
        assert jobs.find(run_id).state == "done"
        states = [event["state"] for event in store.events(run_id, 0, 10)]
        assert states == ["queued", "running", "done"]

    def test_a_job_that_is_queued_again_does_not_show_how_far_its_last_attempt_was(self, jobs: Jobs) -> None:
        run_id = self.submit(jobs, "a")
        jobs.ledger.move(run_id, JobState.RUNNING)
        jobs.ledger.record(run_id, {"kind": "progress", "stage": "score", "done": 3, "total": 4, "unit": "batch"})
        assert jobs.view(jobs.find(run_id)).progress is not None
        jobs.ledger.move(run_id, JobState.QUEUED)
        assert jobs.view(jobs.find(run_id)).progress is None

    @pytest.mark.parametrize("frozen", RELEASES, ids=lambda path: path.stem)
    def test_a_queued_job_of_an_earlier_release_can_be_run(self, tmp_path: Path, frozen: Path) -> None:
        shutil.copy(frozen, tmp_path / "jobs.sqlite")
        store = Store(tmp_path / "jobs.sqlite")
        jobs = Jobs(store, Settings(home=tmp_path), on_event=lambda run_id, event: None)
        (job,) = store.runnable("cpu")
        assert jobs.dispatcher.command_for(job).options == JobOptions().model_dump()

    def test_prune_forgets_what_has_no_result_and_only_the_events_of_what_has(
        self, jobs: Jobs, store: Store, tmp_path: Path
    ) -> None:
        for run_id, state in (("done", "done"), ("failed", "failed"), ("recent", "failed")):
            add(store, run_id, state=state, finished=time.time() - (5 if run_id == "recent" else 500))
            for _ in range(3):
                store.append_event(run_id, {"kind": "state", "state": state})
        queued = self.submit(jobs, "a")
        (tmp_path / "runs" / "done").mkdir(parents=True)
        told = prune(store, tmp_path / "runs", 100, with_results=False, dry_run=True)
        assert (told.jobs, told.runs, told.events) == (["failed"], ["done"], 0)
        assert prune(store, tmp_path / "runs", 100, with_results=False, dry_run=False).events == 5
        assert [job.run_id for job in store.jobs()] == [queued, "recent", "done"]
        assert store.last_seq("done") == 3  # a follower still hears how it ended
        assert prune(store, tmp_path / "runs", 100, with_results=True, dry_run=False).runs == ["done"]
        assert list((tmp_path / "runs").iterdir()) == []

    def test_prune_removes_the_link_to_a_run_in_a_store_and_never_its_files(self, store: Store, tmp_path: Path) -> None:
        add(store, "kept", state="done", finished=time.time() - 500)
        kept, link = tmp_path / "store" / "kept", tmp_path / "runs" / "kept"
        link.parent.mkdir()
        link.symlink_to(kept)
        assert prune(store, link.parent, 100, with_results=False, dry_run=False).jobs == []  # the store is not mounted
        kept.mkdir(parents=True)
        (kept / "log.txt").write_text("said")
        assert prune(store, link.parent, 100, with_results=True, dry_run=False).runs == ["kept"]
        assert (kept / "log.txt").exists() and not link.is_symlink() and store.jobs() == []


@dataclass
class DueJob:
    run_id: str
    priority: int
    passed_over: int


queues = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.booleans()), min_size=1, max_size=8)


@given(queues)
def test_a_warm_model_goes_first_only_among_equals_and_only_so_often(rows: list[tuple[int, int, bool]]) -> None:
    rows.sort(key=lambda row: -row[0])
    due = [DueJob(str(number), row[0], row[1]) for number, row in enumerate(rows)]
    warm = {str(number) for number, row in enumerate(rows) if row[2]}
    chosen = queue.choose_next(due, lambda job: job.run_id in warm)
    assert chosen is not None
    assert chosen.priority == due[0].priority
    if chosen is not due[0]:
        assert chosen.run_id in warm and "0" not in warm and due[0].passed_over < queue.PATIENCE
    elif "0" not in warm and due[0].passed_over < queue.PATIENCE:
        assert not [job for job in due if job.run_id in warm and job.priority == due[0].priority]


@given(st.lists(st.booleans(), max_size=60))
def test_nobody_starves_while_others_with_a_warm_model_keep_coming(arrivals: list[bool]) -> None:
    cold = DueJob("cold", 0, 0)
    overtakers = 0
    for _ in arrivals:
        chosen = queue.choose_next([cold, DueJob("warm", 0, 0)], lambda job: job.run_id == "warm")
        if chosen is cold:
            break
        cold.passed_over += 1
        overtakers += 1
    assert overtakers <= queue.PATIENCE


def resident(name: str, size_bytes: int = 10, **fields: object) -> Resident[str]:
    return Resident(ModelKey(name, None, "auto", "none", ""), name, name, size_bytes, **fields)  # type: ignore[arg-type]


class Warm:
    """Residency over a device of so many bytes, which models in it use up."""

    def __init__(self, device_bytes: int, *residents: Resident[str]) -> None:
        self.models: Residency[str] = Residency()
        self.device_bytes = device_bytes
        for one in residents:
            self.models.add(one)

    def make_room(self, needed_bytes: int, budget_bytes: float = math.inf) -> list[str]:
        free = lambda: self.device_bytes - self.models.size_bytes  # noqa: E731
        return [r.name for r in self.models.make_room("new", needed_bytes, budget_bytes, free)]

    @property
    def names(self) -> list[str]:
        return [r.name for r in self.models]


def test_the_least_recently_used_model_makes_room_first() -> None:
    warm = Warm(40, resident("a"), resident("b"), resident("c"))
    warm.models.use(ModelKey("a", None, "auto", "none", ""))
    assert warm.make_room(30) == ["b", "c"]
    assert warm.names == ["a"]


def test_nothing_is_dropped_while_there_is_room() -> None:
    assert Warm(40, resident("a")).make_room(30) == []


def test_a_budget_holds_where_the_device_has_more() -> None:
    warm = Warm(1000, resident("a"), resident("b"))
    assert warm.make_room(10, budget_bytes=25) == ["a"]


def test_a_pinned_model_stays_and_is_named_where_it_is_in_the_way() -> None:
    warm = Warm(40, resident("kept", pinned=True), resident("b"))
    assert warm.make_room(25) == ["b"]
    with pytest.raises(DoesNotFit, match="does not fit") as raised:
        warm.make_room(35)
    assert "cwtool unload` could free kept" in raised.value.hint


def test_nothing_is_dropped_for_a_model_that_would_not_fit_even_then() -> None:
    warm = Warm(40, resident("a"), resident("b"))
    with pytest.raises(DoesNotFit):
        warm.make_room(41)
    assert warm.names == ["a", "b"]


def test_a_model_expires_when_it_was_not_used_for_so_long_and_a_pinned_one_never() -> None:
    warm = Warm(
        40, resident("brief", keep_alive_s=60.0), resident("pinned", keep_alive_s=60.0, pinned=True), resident("kept")
    )
    now = time.time()
    assert [r.name for r in warm.models.expire(now + 59)] == []
    assert warm.models.next_expiry == pytest.approx(now + 60, abs=5)
    assert [r.name for r in warm.models.expire(now + 66)] == ["brief"]
    assert warm.models.next_expiry == math.inf


def test_another_dtype_is_another_model_and_unload_drops_both() -> None:
    warm: Residency[str] = Residency()
    warm.add(resident("a"))
    warm.add(Resident(ModelKey("a", None, "bfloat16", "none", ""), "a", model="a16"))
    assert warm.use(ModelKey("a", None, "float16", "none", "")) is None
    assert len(warm.drop({"a"})) == 2
