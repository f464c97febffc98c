"""Whether a job gets on, why a worker ended, and what memory a plan may count on; without processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from cwa_daemon.control import endings
from cwa_daemon.control import worker_process as workers
from cwa_daemon.control.awake import GRACE_S, LONGEST_TICK_S, AwakeClock
from cwa_daemon.control.deaths import Cause, Death, why_not_again
from cwa_daemon.control.stalls import CancelDeadline, StallDetector
from cwa_daemon.control.worker_process import WorkerProcess
from cwa_daemon.pipe.messages import EventReport, Heartbeat, Limits, Waiting, WarmCopy
from cwa_daemon.pipe.place import Place
from cwa_daemon.worker import plans
from cwa_engine.spec import RunSpec


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def heartbeat(processor_s: float) -> Heartbeat:
    return Heartbeat(processor_s=processor_s)


def progress(stage: str) -> EventReport:
    return EventReport(run_id="run", event={"kind": "progress", "stage": stage, "done": 1, "total": 9, "unit": "block"})


def test_a_job_is_stuck_when_it_neither_computes_nor_says_anything_and_not_before(clock: Clock) -> None:
    job = StallDetector(clock)
    job.heard(progress("load"))
    for clock.now in range(1, 121):
        job.heard(heartbeat(5.0))
    assert job.complaint(idle_s=120, step_s=3600) == ""  # the first heartbeat told of what had been computed before
    clock.now = 122
    assert "it has neither computed nor said anything for 121 s, last in stage 'load'" in job.complaint(120, 3600)
    job.heard(Waiting())
    assert job.complaint(120, 3600) == ""


def test_a_step_that_computes_for_an_hour_is_left_alone_and_one_without_end_is_not(clock: Clock) -> None:
    job = StallDetector(clock)
    job.heard(progress("score"))
    for clock.now in range(1, 3600):
        job.heard(heartbeat(clock.now / 1000))  # a thousandth of a processor, on a crowded machine
    assert job.complaint(idle_s=120, step_s=3600) == ""
    clock.now = 3601
    assert "it computes and has not come further for 3601 s, last in stage 'score'" in job.complaint(120, 3600)


def test_a_cancelled_job_may_go_on_for_its_share_of_the_processor(clock: Clock) -> None:
    job = StallDetector(clock)
    job.heard(heartbeat(100.0))
    late = CancelDeadline(job)
    for clock.now in range(1, 31):
        job.heard(heartbeat(100 + clock.now / 5))  # a fifth of a processor
    assert late.complaint(grace_s=10) == ""
    job.heard(heartbeat(110.5))
    assert late.complaint(grace_s=10) == "it did not stop within 30 s of a cancel"


def test_a_cancelled_job_that_waits_is_not_waited_for(clock: Clock) -> None:
    job = StallDetector(clock)
    job.heard(heartbeat(100.0))
    late = CancelDeadline(job)
    for clock.now in range(1, 10):
        job.heard(heartbeat(100.0))
    assert late.complaint(grace_s=10) == ""
    clock.now = 11
    assert late.complaint(grace_s=10)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (3, 3, "by another process; the system has killed none"),
        (3, 4, "by the system for want of memory"),
        (None, None, "by another process, or by the system"),
    ],
)
def test_who_killed_a_worker_is_told_by_what_the_kernel_has_counted(
    monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None, said: str
) -> None:
    monkeypatch.setattr(endings, "memory_kills", lambda: after)
    assert said in endings.how_it_ended("cpu", -signal.SIGKILL, before).reason


def test_the_system_tells_how_many_processes_it_has_killed_for_want_of_memory() -> None:
    kills = endings.memory_kills()
    assert kills is None or kills >= 0


LIMITS = Limits(keep_alive="30m", reserve_bytes=10**9, cache_folder="", cache_bytes=0, trust_remote_code=False)


def warm(name: str, gigabytes: int, pinned: bool = False, dtype: str = "float32") -> WarmCopy:
    return WarmCopy(name=name, dtype=dtype, size_bytes=gigabytes * 10**9, pinned=pinned)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([], 10),  # nothing is warm: what is free
        ([warm("other", 3)], 10),  # it may stay
        ([warm("other", 3), warm("another", 4)], 10),
        ([warm("gpt2", 8), warm("other", 3)], 18),  # the model is there, so its weights need no more
        ([warm("gpt2", 8, dtype="bfloat16")], 10),
    ],
)
def test_a_plan_counts_on_what_is_free_when_warm_models_have_made_room(models: list[WarmCopy], expected: int) -> None:
    room = plans._room(RunSpec(model="gpt2"), "cpu", 10 * 10**9, models, LIMITS)
    assert room("float32", 8 * 10**9) == expected * 10**9


def test_a_plan_counts_on_the_least_recently_used_models_to_go_first_and_on_pinned_ones_to_stay() -> None:
    models = [warm("old", 3), warm("kept", 5, pinned=True), warm("new", 4)]
    room = plans._room(RunSpec(model="gpt2"), "cpu", 10 * 10**9, models, LIMITS)
    assert room("float32", 12 * 10**9) == 13 * 10**9  # old goes
    assert room("float32", 16 * 10**9) == 17 * 10**9  # and new
    assert room("float32", 30 * 10**9) == 17 * 10**9  # kept stays
    assert plans._room(RunSpec(model="gpt2"), "cuda", None, models, LIMITS)("float32", 1) is None


def test_what_the_system_killed_is_compared_with_what_it_had_before_the_worker_fell_silent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    monkeypatch.setattr(workers, "memory_kills", lambda: 3 + (clock.now > 100))
    worker = WorkerProcess(Place(tmp_path, "cpu"), tmp_path / "log", clock, print, print)  # type: ignore[arg-type]
    for clock.now in range(102):
        worker._last_heard = min(clock.now, 100)
        worker.look_after()  # for seconds a process that was killed is still there
    for clock.now in range(102, 140):
        worker.look_after()
    assert worker._memory_kills[0] == 3


def test_a_clock_stops_with_its_process_and_gives_a_grace_when_that_goes_on(clock: Clock) -> None:
    awake = AwakeClock(clock)
    for clock.now in range(1, 21):
        awake.tick()
    assert (awake(), awake.has_just_woken) == (20, False)
    clock.now = 20 + 3600  # asleep for an hour
    assert awake() == 20 + LONGEST_TICK_S
    awake.tick()
    assert awake() == 20 + LONGEST_TICK_S and awake.has_just_woken
    for clock.now in range(3621, 3621 + int(GRACE_S)):
        awake.tick()
    assert not awake.has_just_woken
    assert awake() == 20 + LONGEST_TICK_S + GRACE_S


def died(cause: Cause, stage: str = "score") -> dict[str, Any]:
    return Death("it died", cause, stage=stage).row()


ITSELF, OTHERS, STOP = died(Cause.ITSELF), died(Cause.OTHERS), died(Cause.STOP)


@pytest.mark.parametrize(
    ("deaths", "retries", "again"),
    [
        ([ITSELF], 1, True),
        ([ITSELF, ITSELF], 9, False),  # poison
        ([died(Cause.ITSELF, "load"), ITSELF], 2, True),
        ([died(Cause.ITSELF, "load"), ITSELF], 1, False),
        ([OTHERS] * 20, 1, True),
        ([OTHERS] * 21, 1, False),
        ([died(Cause.OTHERS, "start")] * 100, 1, True),  # it never came to the job
        ([died(Cause.OTHERS, "start")] * 101, 1, False),
        ([ITSELF, OTHERS], 1, True),  # somebody's kill does not use up the retry
        ([OTHERS], 0, False),
        ([STOP] * 99, 0, True),
    ],
)
def test_a_job_is_run_again_unless_it_has_killed_its_worker_or_died_too_often(
    deaths: list[dict[str, Any]], retries: int, again: bool
) -> None:
    assert (why_not_again(deaths, retries) is None) is again


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (-signal.SIGSEGV, Cause.ITSELF),
        (-signal.SIGABRT, Cause.ITSELF),
        (1, Cause.ITSELF),
        (-signal.SIGTERM, Cause.OTHERS),
        (None, Cause.OTHERS),  # another daemon had started it
    ],
)
def test_a_worker_that_ended_by_itself_is_told_from_one_that_others_ended(code: int | None, cause: Cause) -> None:
    assert endings.how_it_ended("cpu", code, endings.memory_kills()).cause is cause
