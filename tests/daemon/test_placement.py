"""Which lane runs which job: a machine of lanes without processes, on which jobs take turns of a clock."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import telemetry
from cwa_daemon.control.job import Job
from cwa_daemon.control.jobs import Jobs
from cwa_daemon.control.lane_names import LaneNames
from cwa_daemon.control.pace import Course
from cwa_daemon.control.placement import SETTLE_S, Placement
from cwa_daemon.control.queue import PATIENCE
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import JobOptions, JobState
from cwa_engine.base.errors import DoesNotFit, InvalidInput
from cwa_engine.spec import RunSpec
from tests.daemon.test_jobs import RELEASES, QuietLane, add


def job(number: int, model: str, device: str = "auto", priority: int = 0) -> Job:
    """A queued run."""
    nothing = dict.fromkeys(
        ("retry_of", "started", "finished", "error", "after_run", "copy_error", "headline"),
    )
    return Job(
        number=number, run_id=f"20261126-060000-{model}-{number:04d}", kind="run", state=JobState.QUEUED,
        spec={"model": model, "device": device}, command="", device=device, client_key=str(number), created=0.0,
        priority=priority, passed_over=0, options={}, owner="", deaths=[], worked_s=0.0, tags=[], note="", **nothing,
    )  # fmt: skip


@dataclass
class SimulatedLane:
    """A lane that keeps every model that it has loaded, and computes for as many ticks as it is told."""

    device: str
    warm: set[str] = field(default_factory=set)
    running_job: Job | None = None
    ends_at: int = 0
    loads: int = 0
    waits: set[str] = field(default_factory=set)  # run ids
    loading_s: float = 0.0
    computed_s: float | None = None

    @property
    def course(self) -> Course | None:
        return Course(self.running_job, self.loading_s, self.computed_s) if self.running_job else None

    @property
    def is_resting(self) -> bool:
        return self.running_job is None

    def is_warm(self, job: Job) -> bool:
        return job.model in self.warm

    def must_wait(self, run_id: str) -> bool:
        return run_id in self.waits


class Machine:
    """Lanes and a queue: each tick the lanes that rest are asked in their order, as often as anything changes."""

    LOAD, RUN = 3, 2  # ticks

    def __init__(self, lanes: int, jobs: Sequence[Job]) -> None:
        self.names = LaneNames.of(lanes, nvidia_devices=0)
        self.lanes = {name: SimulatedLane(name) for name in self.names.cpu}
        self.placement = Placement(self.names, self.lanes, lambda device: 0)
        self.due = sorted(jobs, key=lambda job: (-job.priority, job.number))
        self.ran: dict[str, str] = {}  # run id -> lane
        self.ticks = 0

    def run(self) -> None:
        while self.due or any(lane.running_job for lane in self.lanes.values()):
            for lane in self.lanes.values():
                if lane.running_job and lane.ends_at <= self.ticks:
                    lane.running_job = None
            while any(self.asked(lane) for lane in self.lanes.values() if lane.is_resting):
                pass
            assert not self.due or any(lane.running_job for lane in self.lanes.values()), "jobs wait for nothing"
            self.ticks += 1

    def asked(self, lane: SimulatedLane) -> bool:
        """Whether a lane that rests begins a job."""
        takes = self.names.taken_by(lane.device)
        due = [each for each in self.due if each.device in takes and self.placement.may_take(lane, each)]
        choice = self.placement.choose(lane, due)
        if choice is None:
            return False
        assert choice.device == lane.device
        if choice.passed:
            place = self.due.index(choice.passed)
            self.due[place] = replace(choice.passed, passed_over=choice.passed.passed_over + 1)
            assert self.due[place].passed_over <= PATIENCE and choice.passed.priority == choice.job.priority
        self.due.remove(choice.job)
        self.ran[choice.job.run_id] = lane.device
        is_cold = not lane.is_warm(choice.job)
        lane.loads += is_cold
        lane.warm.add(choice.job.model)
        lane.running_job, lane.ends_at = choice.job, self.ticks + self.RUN + self.LOAD * is_cold
        return True


@pytest.mark.parametrize("order", ["by model", "in turns"])
def test_a_study_of_twelve_cells_over_three_models_fills_both_lanes_and_loads_hardly_any_model_twice(
    order: str,
) -> None:
    models = [model for _ in range(4) for model in "abc"]
    cells = [job(number, model) for number, model in enumerate(sorted(models) if order == "by model" else models)]
    alone, together = Machine(1, [replace(cell, device="cpu") for cell in cells]), Machine(2, cells)
    alone.run()
    together.run()
    assert sum(lane.loads for lane in alone.lanes.values()) == 3
    assert sum(lane.loads for lane in together.lanes.values()) <= 4
    assert together.ticks <= 0.6 * alone.ticks


JOBS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["auto", "cpu", "cpu:0", "cpu:1", "cpu:2"]), st.integers(0, 2)),
    max_size=30,
)


@given(JOBS)
def test_every_job_runs_once_where_it_may_and_no_lane_rests_while_one_waits_for_it(
    rows: list[tuple[str, str, int]],
) -> None:
    jobs = [job(number, *row) for number, row in enumerate(rows)]
    machine = Machine(3, jobs)
    machine.run()
    assert set(machine.ran) == {each.run_id for each in jobs}
    assert all(machine.ran[each.run_id] in machine.names.for_device(each.device) for each in jobs)


def test_a_job_is_left_to_the_lane_that_has_its_model_unless_that_is_busy() -> None:
    machine = Machine(2, [])
    first, second = machine.lanes.values()
    second.warm.add("a")
    due = [job(1, "a"), job(2, "b")]
    choice = machine.placement.choose(first, due)
    assert choice and (choice.job, choice.passed) == (
        due[1],
        None,
    )  # nobody was passed over: the other lane begins it now
    assert (other := machine.placement.choose(second, due)) and (other.job, other.why) == (
        due[0],
        "its model is warm there",
    )
    second.running_job = job(3, "a")
    choice = machine.placement.choose(first, due[:1])
    assert choice and choice.job is due[0]
    assert choice.why == "it is free; cpu:1 has its model and is busy with 0003"


def test_a_model_that_is_being_loaded_elsewhere_is_not_loaded_twice_while_there_is_another_to_load() -> None:
    machine = Machine(2, [])
    first, second = machine.lanes.values()
    second.running_job = job(0, "a")  # loads it
    due = [job(1, "a"), job(2, "b", priority=0)]
    choice = machine.placement.choose(first, due)
    assert choice and (choice.job, choice.passed) == (due[1], due[0])
    patient = [replace(due[0], passed_over=PATIENCE), due[1]]
    assert (choice := machine.placement.choose(first, patient)) and choice.job is patient[0]


def test_a_free_lane_leaves_a_job_to_the_busy_one_that_has_its_model_where_that_is_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(2, [])
    first, second = machine.lanes.values()
    machine.placement.pace.ended(Course(job(0, "a"), 10.0, 6.0), was_warm=False)
    second.warm.add("a")
    second.running_job, second.computed_s = job(1, "a"), 4.0  # it will be free in 2 s, then in 8, then in 14
    due = [job(number, "a") for number in (2, 3, 4)]
    choice = machine.placement.choose(first, due)
    assert choice and choice.job is due[2] and choice.passed is None  # loads, and fills the lane
    assert not machine.placement.choose(first, due[:2])
    assert machine.placement.has_left and machine.placement.left_to(due[1].run_id) == "cpu:1"
    second.computed_s = 6.5  # longer than such a job took: nobody knows when it ends
    assert (choice := machine.placement.choose(first, due)) and choice.job is due[0]
    second.computed_s, second.waits = 4.0, {due[0].run_id}  # that lane does not take it now
    assert (choice := machine.placement.choose(first, due)) and choice.job is due[0]
    second.waits.clear()
    assert not machine.placement.choose(first, due[:1])
    late = time.monotonic() + 10.5  # by now it would have been loaded: that lane had others to do
    monkeypatch.setattr(time, "monotonic", lambda: late)
    assert (choice := machine.placement.choose(first, due[:1])) and choice.job is due[0]


def test_a_model_that_another_lane_loads_is_not_loaded_again_before_other_cells_of_the_study_had_time_to_come() -> None:
    machine = Machine(2, [])
    first, second = machine.lanes.values()
    second.running_job = job(1, "a")
    now = time.time()
    just_came = replace(job(2, "a"), created=now)
    assert machine.placement.choose(first, [just_came]) is None
    other = replace(job(3, "b"), created=now)
    assert (choice := machine.placement.choose(first, [just_came, other])) and choice.job is other
    waited = replace(just_came, created=now - SETTLE_S)
    assert (choice := machine.placement.choose(first, [waited])) and choice.job is waited


def test_what_does_not_fit_on_a_lane_is_tried_on_the_others_and_then_fails_with_the_numbers_of_the_largest() -> None:
    machine = Machine(3, [])
    rooms = {"cpu:0": 1, "cpu:1": 9, "cpu:2": 5}
    placement = Placement(machine.names, machine.lanes, rooms.__getitem__)
    assert placement.with_most_room("auto") == "cpu:1"
    asked = job(1, "a")
    placed = replace(asked, device="cpu:0")
    for name in ("cpu:0", "cpu:1"):
        lane = machine.lanes[name]
        assert placement.may_take(lane, asked)
        assert placement.refused(lane, placed, DoesNotFit(f"{rooms[name]} are free", hint="smaller")) is None
        assert not placement.may_take(lane, asked)
    last = placement.refused(machine.lanes["cpu:2"], placed, DoesNotFit("5 are free"))
    assert last and last.message == "9 are free; it was tried on cpu:0 and cpu:1 and cpu:2" and last.hint == "smaller"
    pinned_to_one = replace(asked, spec={"model": "a", "device": "cpu:0"}, device="cpu:0")
    assert (only := placement.refused(machine.lanes["cpu:0"], pinned_to_one, DoesNotFit("1 are free")))
    assert only.message == "1 are free"


@pytest.mark.parametrize("frozen", RELEASES, ids=lambda path: path.stem)
def test_jobs_of_an_earlier_version_wait_for_any_lane_of_this_one(frozen: Path, tmp_path: Path) -> None:
    shutil.copy(frozen, tmp_path / "jobs.sqlite")
    store = Store(tmp_path / "jobs.sqlite")
    jobs = Jobs(store, Settings(home=tmp_path, cpu_lanes=2), lambda run_id, event: None, make_lane=QuietLane)  # type: ignore[arg-type]
    queued = [each for each in store.jobs() if each.state == JobState.QUEUED]
    assert {each.device for each in queued} == {"cpu"}
    jobs.recover()
    for lane in ("cpu:0", "cpu:1"):
        assert store.runnable(*jobs.dispatcher.names.taken_by(lane)) == list(reversed([*store.jobs(state="queued")]))


def test_jobs_for_a_lane_that_is_gone_since_the_last_start_wait_for_another(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    for number, device in enumerate(["auto", "cpu", "cpu:1", "cpu:3"]):
        add(store, f"run{number}", device=device, spec=RunSpec(model="gpt2", device=device).model_dump(mode="json"))
    for lanes, devices in (
        (2, ["auto", "cpu", "cpu:1", "cpu"]),
        (1, ["cpu"] * 4),
        (4, ["auto", "cpu", "cpu:1", "cpu:3"]),
    ):
        jobs = Jobs(store, Settings(home=tmp_path, cpu_lanes=lanes), lambda run_id, event: None, make_lane=QuietLane)  # type: ignore[arg-type]
        jobs.recover()
        assert [each.device for each in reversed(store.jobs())] == devices


def test_a_lane_that_the_daemon_does_not_have_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    jobs = Jobs(store, Settings(home=tmp_path, cpu_lanes=2), lambda run_id, event: None, make_lane=QuietLane)  # type: ignore[arg-type]
    spec = RunSpec(model="gpt2", device="cpu:2").model_dump(mode="json")
    with pytest.raises(InvalidInput, match="no device 'cpu:2': it has the CPU lanes cpu:0, cpu:1") as raised:
        jobs.submit("run", spec, "cpu:2", "key", "", {}, JobOptions())
    assert "CWTOOL_CPU_LANES" in raised.value.hint
    one = LaneNames.of(1, nvidia_devices=0)
    one.check("cpu:0")  # the only one there is
    with pytest.raises(InvalidInput, match="it has one CPU lane"):
        one.check("cpu:1")


def test_auto_means_any_nvidia_device_and_where_there_is_none_any_cpu_lane() -> None:
    for lanes, devices in itertools.product((1, 2), (0, 1, 2)):
        names = LaneNames.of(lanes, devices)
        cpu = ("cpu",) if lanes == 1 else ("cpu:0", "cpu:1")
        nvidia = tuple(f"cuda:{number}" for number in range(devices))
        assert names.for_device("auto") == (nvidia or cpu)
        assert names.for_device("cpu") == cpu
        assert names.for_device("cuda:0+cuda:1") == names.taken_by("cuda:0+cuda:1") == ("cuda:0+cuda:1",)
        for lane in (*cpu, *nvidia):
            asked = {"auto", "cpu", lane}
            assert set(names.taken_by(lane)) == {each for each in asked if lane in names.for_device(each)}


def test_cpu_lanes_share_what_others_leave_of_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, cpu_lanes=2, memory_budget_gb=3)
    jobs = Jobs(Store(tmp_path / "jobs.sqlite"), settings, lambda run_id, event: None, make_lane=QuietLane)  # type: ignore[arg-type]
    monkeypatch.setattr(telemetry, "cpu_share_bytes", lambda lanes, pids: 24_000 // lanes)
    limits = jobs.dispatcher.command_for(replace(job(1, "gpt2"), device="cpu:1")).limits
    assert (limits.budget_bytes, limits.share_bytes) == (1_500_000_000, 12_000)
    limits = jobs.dispatcher.command_for(replace(job(1, "gpt2"), device="cuda:0")).limits
    assert (limits.budget_bytes, limits.share_bytes) == (3_000_000_000, None)
