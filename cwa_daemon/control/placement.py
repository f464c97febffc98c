"""On which lane a job runs that may run on several: a free lane asks, and takes what it is the best place for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cwa_daemon.control import queue
from cwa_daemon.control.job import Job
from cwa_daemon.control.lane_names import LaneNames
from cwa_daemon.control.pace import Course, Pace
from cwa_daemon.pipe.place import WITHOUT_DEVICE
from cwa_engine.base.errors import DoesNotFit
from cwa_engine.records.run_id import short_id

# After a job came, before a model that another lane has is loaded for it: a study's cells come one by one.
SETTLE_S = 2.0


class Place(Protocol):
    """What is asked of a lane."""

    device: str

    @property
    def is_resting(self) -> bool:
        """Whether it waits for a job, and would begin one at once."""

    @property
    def running_job(self) -> Job | None:
        """The job that it is at."""

    @property
    def course(self) -> Course | None:
        """How far that job is."""

    def is_warm(self, job: Job) -> bool: ...

    def must_wait(self, run_id: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A job did not fit on a lane that had so much room."""

    error: DoesNotFit
    room_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A job that a lane begins: on which device, and why there; empty where it had no choice."""

    job: Job
    device: str
    why: str
    passed: Job | None  # it was due before
    goes_before_because: str


class Placement:
    """The choice among `lanes`, which grows as lanes begin; `names` are those that this daemon has.

    `room_bytes` tells of a device how much a model could find there.
    """

    def __init__(self, names: LaneNames, lanes: Mapping[str, Place], room_bytes: Callable[[str], int]) -> None:
        self.names = names
        self._lanes = lanes
        self._room_bytes = room_bytes
        self._refusals: dict[str, dict[str, _Refusal]] = {}  # run id -> lanes that it did not fit on
        self._left: dict[str, dict[str, str]] = {}  # lane -> run ids that it has left to a busy one, and which
        self._left_since: dict[str, float] = {}  # run id -> since when, by a clock that is never set
        self.pace = Pace()

    # a job for a lane

    def may_take(self, lane: Place, job: Job) -> bool:
        """Whether a job that is due is to be tried on a lane now."""
        return lane.device not in self._refusals.get(job.run_id, {}) and not lane.must_wait(job.run_id)

    def choose(self, lane: Place, due: Sequence[Job]) -> Choice | None:
        """The job to begin on a free lane. One whose model is warm only on another lane that rests is left to that."""
        others = self._others(lane)
        left = self._left[lane.device] = self._left_to_busy(lane, due, others)
        mine = [
            job
            for job in due
            if job.run_id not in left and (lane.is_warm(job) or not any(self._awaits(other, job) for other in others))
        ]
        job = queue.choose_next(mine, lane.is_warm, functools.partial(_is_held, others))
        if job is None:
            return None
        device, why = self._where(lane, job)
        because = "its model is warm" if lane.is_warm(job) else "the model of that one is on another lane"
        return Choice(job, device, why, None if job is mine[0] else mine[0], because)

    def _left_to_busy(self, lane: Place, due: Sequence[Job], others: Sequence[Place]) -> dict[str, str]:
        """Run ids of the jobs that a busy lane has the model of and will end sooner, and the name of that lane.

        It will be free before the model could be loaded here, with what is left to it already, by what was measured last;
        a job for which that did not come true within the time of a load is left no longer. For a moment after a job came it
        is left without any figures: jobs of other models may be about to come.
        """
        left: dict[str, str] = {}
        busy_s = {other.device: self.pace.left_s(course) for other in others if (course := other.course)}
        for job in due:
            if lane.is_warm(job):
                continue
            load_s, compute_s = self.pace.load_s(job.model), self.pace.compute_s(job)
            for other in others:
                if other.device not in busy_s or not _is_held([other], job) or not self._can(other, job):
                    continue
                free_s = busy_s[other.device]
                is_sooner = free_s is not None and load_s is not None and free_s < load_s
                if is_sooner and load_s is not None:
                    since = self._left_since.setdefault(job.run_id, time.monotonic())
                    is_sooner = time.monotonic() - since <= load_s
                if is_sooner or 0 <= time.time() - job.created < SETTLE_S:
                    left[job.run_id] = other.device
                    busy_s[other.device] = None if free_s is None or compute_s is None else free_s + compute_s
                    break
        return left

    def left_to(self, run_id: str) -> str:
        """The busy lane to which others have left a job; empty where there is none."""
        return next((left[run_id] for left in self._left.values() if run_id in left), "")

    @property
    def has_left(self) -> bool:
        """Whether a lane that may be free has left a job to a busy one, and is to look again."""
        return any(self._left.values())

    def _can(self, other: Place, job: Job) -> bool:
        return other.device in self.names.for_device(job.device) and self.may_take(other, job)

    def _where(self, lane: Place, job: Job) -> tuple[str, str]:
        """The device that a job gets on a lane, and why; the reason is empty where it had no choice."""
        has_choice = len(self.names.for_device(job.device)) > 1
        if job.kind == "plan":
            return self.with_most_room(job.device), "most room is there" if has_choice else ""
        if job.kind in WITHOUT_DEVICE:
            return job.device, ""
        return lane.device, self._why(lane, job) if has_choice else ""

    def _why(self, lane: Place, job: Job) -> str:
        if lane.is_warm(job):
            return "its model is warm there"
        if refused := self.refusals_of(job.run_id):
            return f"it does not fit on {' and '.join(refused)}"
        holders = [other for other in self._others(lane) if _is_held([other], job)]
        if not holders:
            return "it is free, and the model is warm on none"
        busy = [
            f"{other.device} has its model and is busy with {short_id(at.run_id)}"
            for other in holders
            if (at := other.running_job)
        ]
        return "; ".join(["it is free", *busy])

    def _awaits(self, other: Place, job: Job) -> bool:
        """Whether another lane rests, has the model of a job warm, and may run it."""
        return self._can(other, job) and other.is_resting and other.is_warm(job)

    def _others(self, lane: Place) -> list[Place]:
        """The other lanes that may run what this one may."""
        devices = set(self.names.taken_by(lane.device))
        return [
            other
            for other in self._lanes.values()
            if other.device != lane.device and not devices.isdisjoint(self.names.taken_by(other.device))
        ]

    # a lane for a job

    def with_most_room(self, device: str) -> str:
        """The lane for a device on which there is most room; of equal ones the first."""
        names = self.names.for_device(device)
        return max(names, key=self._room_bytes) if len(names) > 1 else names[0]

    # what does not fit

    def refused(self, lane: Place, job: Job, error: DoesNotFit) -> DoesNotFit | None:
        """A job does not fit on a lane: None where another one is to try it, else why it fits nowhere."""
        refusals = self._refusals.setdefault(job.run_id, {})
        refusals[lane.device] = _Refusal(error, self._room_bytes(lane.device))
        # by what it was asked for, since by now the job has a lane
        untried = [name for name in self.names.for_device(job.asked) if name not in refusals]
        if untried:
            return None
        tried = self._refusals.pop(job.run_id)
        largest = max(tried.values(), key=lambda refusal: refusal.room_bytes).error
        if len(tried) == 1:
            return largest
        return DoesNotFit(f"{largest.message}; it was tried on {' and '.join(sorted(tried))}", hint=largest.hint)

    def refusals_of(self, run_id: str) -> list[str]:
        """The lanes on which a job did not fit."""
        return list(self._refusals.get(run_id, {}))

    def forget(self, run_id: str) -> None:
        """A job has ended."""
        self._refusals.pop(run_id, None)
        self._left_since.pop(run_id, None)

    def rename(self, names: LaneNames) -> None:
        """The lanes are others now, so what did not fit may fit."""
        self.names = names
        self._refusals.clear()
        self._left.clear()


def _is_held(others: Sequence[Place], job: Job) -> bool:
    """Whether the model of a job is warm on another lane, or is being loaded there."""
    return any(
        other.is_warm(job) or ((running := other.running_job) is not None and running.model == job.model)
        for other in others
    )
