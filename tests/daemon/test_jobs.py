"""The store, the life of a job, and which models stay warm, without processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cwa_daemon.jobs import MOVES, Jobs, JobState, new_run_id
from cwa_daemon.residency import ModelKey, Residency, Resident
from cwa_daemon.settings import Settings
from cwa_daemon.store import SCHEMA_VERSION, Store
from cwa_engine.errors import DaemonNotStartable, InvalidInput, NotFound, QueueFull
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
    numbers = [store.append_event("a", {"kind": "note", "text": str(i), "level": "info"}) for i in range(5)]
    store.append_event("b", {"kind": "note", "text": "another job's", "level": "info"})
    assert numbers == [1, 2, 3, 4, 5]
    assert [event["text"] for event in store.events("a", after_seq=2, limit=2)] == ["2", "3"]
    assert store.last_seq("b") == 1


def test_the_queue_of_a_device_is_first_in_first_out(store: Store) -> None:
    add(store, "first")
    add(store, "second")
    add(store, "elsewhere", device="cuda:0")
    assert [job["run_id"] for job in [store.next_queued("cpu")] if job] == ["first"]
    store.update_job("first", state="done")
    assert [job["run_id"] for job in [store.next_queued("cpu")] if job] == ["second"]
    assert sorted(store.devices_with_queued_jobs()) == ["cpu", "cuda:0"]


def test_a_store_of_another_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    store.close()
    before = (tmp_path / "jobs.sqlite").read_bytes()
    with pytest.raises(DaemonNotStartable, match="another version"):
        Store(tmp_path / "jobs.sqlite")
    assert (tmp_path / "jobs.sqlite").read_bytes() == before


def test_a_damaged_store_is_named_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DaemonNotStartable, match="cannot be used") as raised:
        Store(tmp_path / "jobs.sqlite")
    assert "move it aside" in raised.value.hint
    assert (tmp_path / "jobs.sqlite").read_bytes() == b"not a database" * 100


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

    def __init__(self, *args: object) -> None: ...

    def wake(self) -> None: ...


class TestJobs:
    """The queue's rules."""

    @pytest.fixture
    def jobs(self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Jobs:
        monkeypatch.setattr("cwa_daemon.jobs.Lane", QuietLane)
        return Jobs(store, Settings(home=tmp_path, max_queue=3), on_event=lambda run_id: None)

    def submit(self, jobs: Jobs, key: str) -> str:
        return jobs.submit("run", RunSpec(model="gpt2").model_dump(mode="json"), "cpu", key, "cwtool run", {})

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
        assert jobs.find(run_id[-4:])["run_id"] == run_id
        self.submit(jobs, "b")
        with pytest.raises(InvalidInput, match="may be 2 runs"):
            jobs.find(run_id[:8])
        with pytest.raises(NotFound):
            jobs.find("")
        with pytest.raises(NotFound):
            jobs.find("%")

    def test_what_ran_when_the_daemon_died_is_interrupted_and_can_be_retried(self, jobs: Jobs, store: Store) -> None:
        add(store, "20260101-000000-gpt2-abcd", state="running")
        jobs.recover()
        job = jobs.find("20260101-000000-gpt2-abcd")
        assert (job["state"], "cwtool jobs retry" in job["error"]["hint"]) == ("interrupted", True)

    def test_a_hub_token_is_in_memory_alone(self, jobs: Jobs, tmp_path: Path) -> None:
        spec = RunSpec(model="gpt2").model_dump(mode="json")
        run_id = jobs.submit("run", spec, "cpu", "key", "", {"token": "hf_secret"})
        assert jobs.command_for(jobs.find(run_id))["access"]["token"] == "hf_secret"
        jobs.cancel(run_id)
        assert jobs.command_for(jobs.find(run_id))["access"] == {}
        assert all(b"hf_secret" not in path.read_bytes() for path in tmp_path.iterdir())


def resident(name: str) -> Resident[str]:
    return Resident(ModelKey(name, None, "auto", "none", ""), name, model=name)


def test_the_least_recently_used_model_makes_room_first() -> None:
    warm: Residency[str] = Residency()
    for name in ("a", "b", "c"):
        warm.add(resident(name))
    warm.use(ModelKey("a", None, "auto", "none", ""))
    free = iter([10, 20, 30, 40])
    dropped = warm.make_room(30, lambda: next(free))
    assert [r.name for r in dropped] == ["b", "c"]
    assert [r.name for r in warm] == ["a"]


def test_nothing_is_dropped_while_there_is_room() -> None:
    warm: Residency[str] = Residency()
    warm.add(resident("a"))
    assert warm.make_room(30, lambda: 30) == []


def test_another_dtype_is_another_model_and_unload_drops_both() -> None:
    warm: Residency[str] = Residency()
    warm.add(resident("a"))
    warm.add(Resident(ModelKey("a", None, "bfloat16", "none", ""), "a", model="a16"))
    assert warm.use(ModelKey("a", None, "float16", "none", "")) is None
    assert len(warm.drop({"a"})) == 2
