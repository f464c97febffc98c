"""Which job runs where next: the lanes of all devices, and the commands for their workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import telemetry, waits
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.job import Job
from cwa_daemon.control.lane import Lane
from cwa_daemon.control.lane_names import AUTO, CPU, LaneNames
from cwa_daemon.control.ledger import Ledger
from cwa_daemon.control.outcomes import Outcomes
from cwa_daemon.control.pace import Course
from cwa_daemon.control.placement import Placement
from cwa_daemon.control.store import Store
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.pipe import place
from cwa_daemon.pipe.messages import Limits, LoadAgain, PlanMemory, RunJob
from cwa_daemon.protocol import JobState, WarmModel, WorkerView
from cwa_engine.base.errors import DoesNotFit, InvalidInput, StateNotWritten
from cwa_engine.base.plain import JsonMap

STEADY_TICKS = 5  # that other devices must be seen before they count: a driver may not answer once

LoadModelAgain = Callable[[str, LoadAgain, str], None]  # device, what to load, why it was lost


class Dispatcher:
    """The lanes of a daemon. `make_lane` stands for `Lane` where no worker is to run."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        ledger: Ledger,
        outcomes: Outcomes,
        troubles: Troubles,
        load_again: LoadModelAgain,
        make_lane: Callable[..., Lane] = Lane,
    ) -> None:
        self.load_again = load_again
        self._store = store
        self._settings = settings
        self._ledger = ledger
        self._outcomes = outcomes
        self._troubles = troubles
        self._make_lane = make_lane
        self._clock = AwakeClock()
        self._lanes: dict[str, Lane] = {}
        self._placement = Placement(self._names_now(), self._lanes, self._room_bytes)
        self._ticks_otherwise = 0  # for which there have been other devices
        self._not_begun: set[str] = set()  # lanes that may have a worker of an earlier daemon, and have not looked yet
        # devices of jobs -> run ids of the jobs that are due, in their order,
        self._queues: dict[tuple[str, ...], list[str]] = {}
        self._queues_of = 0  # by this version of the store
        self._tokens: dict[str, str] = {}  # Hub tokens of waiting jobs; in memory only

    def recover(self) -> None:
        """After a start: begin the lanes that had jobs or workers; each looks for the worker that it had before.

        Jobs that wait are to run on the lanes that there are now.
        """
        for job in self._waiting():
            if (device := self.queued_on(job)) != job.device:
                with contextlib.suppress(StateNotWritten):  # on a full disk it waits for the next start
                    self._store.update_job(job.run_id, device=device)
        running = {job.lane for job in self._store.jobs(limit=10_000, state=JobState.RUNNING)}
        self._not_begun = {*running, *place.lanes(self._settings.workers)}
        for name in (*self.names.shown_from_the_start, *sorted(self._not_begun)):
            self._lane(name)
        self.wake_all()

    def _waiting(self) -> list[Job]:
        states = (JobState.QUEUED, JobState.PAUSED)
        return [job for state in states for job in self._store.jobs(limit=10_000, state=state)]

    def wake_for(self, job: Job) -> None:
        """Have the lanes look that may run a job, the one with most room first."""
        self._wake(self._lanes_for(job.lane))

    def wake_all(self) -> None:
        """Have every lane look that has queued jobs."""
        for device in self._store.lanes_with_queued_jobs():
            self._wake(self._lanes_for(device))

    def _lanes_for(self, device: str) -> list[Lane]:
        """The lanes for the device of a queued job, or for that of one that runs, the one with most room first."""
        if device in place.WITHOUT_DEVICE.values():
            return [self._lane(device)]
        lanes = [self._lane(name) for name in self.names.for_device(device)]
        return sorted(lanes, key=lambda lane: -self._room_bytes(lane.device)) if len(lanes) > 1 else lanes

    @staticmethod
    def _wake(lanes: Sequence[Lane]) -> None:
        for lane in lanes:
            lane.wake()

    def cancel(self, job: Job) -> None:
        """Ask the worker of a job that runs to stop it."""
        self._lane(job.lane).cancel(job.run_id)

    def keep_token(self, run_id: str, token: str) -> None:
        """Remember the Hub token of a job until `forget`."""
        self._tokens[run_id] = token

    def forget(self, run_id: str) -> None:
        """A job has ended."""
        self._tokens.pop(run_id, None)
        self._placement.forget(run_id)

    def tick(self) -> None:
        """Once a second: look after the workers, and whether there are other devices now."""
        self._clock.tick()
        names = self._names_now()
        self._ticks_otherwise = self._ticks_otherwise + 1 if names != self.names else 0
        if self._ticks_otherwise >= STEADY_TICKS:
            self._placement.rename(names)
            self.wake_all()
        if self._placement.has_left:  # and the busy lane may take longer than was thought
            self._wake(list(self._lanes.values()))
        for lane in list(self._lanes.values()):  # one may lose a pinned model, which begins another
            lane.check_health()

    @property
    def names(self) -> LaneNames:
        """The lanes that there are, and which may run what."""
        return self._placement.names

    def _names_now(self) -> LaneNames:
        return LaneNames.of(self._settings.cpu_lanes, telemetry.nvidia_devices())

    def queued_on(self, job: Job) -> str:
        """The device of a job while it waits."""
        return self.names.kept_as(job.asked)

    async def drain(self) -> None:
        """Let what runs come to its end, and begin nothing more."""
        await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))

    async def stop(self) -> None:
        """End all lanes and workers; what runs is queued again."""
        await asyncio.gather(*(lane.stop() for lane in self._lanes.values()))
        await asyncio.to_thread(place.end_all, self._settings.workers)

    # what clients see of it

    def waits_for(self, job: Job) -> str:
        """What a job that has not ended waits for, in words; empty for nothing."""
        lanes = self._lanes_of(job)
        if job.state not in (JobState.QUEUED, JobState.RUNNING) or not lanes:
            return ""
        predecessor = self._store.job(job.after_run) if job.after_run else None
        if predecessor and predecessor.state is not JobState.DONE:
            return waits.for_predecessor(predecessor.run_id)
        before = self._before(job)
        if len(lanes) == 1:
            return lanes[0].waits_for(job, before)
        refusals = self._placement.refusals_of(job.run_id)
        obstacles = [waits.for_room(lane.device) if lane.device in refusals else lane.obstacle(job) for lane in lanes]
        if all(obstacles):
            return waits.for_lanes(obstacles, len(before))
        left_to = self._placement.left_to(job.run_id)
        return waits.for_its_model(left_to) if left_to else waits.for_queued(before)

    def _lanes_of(self, job: Job) -> list[Lane]:
        """The lane that a job runs on, or those that may run it; as far as they have begun."""
        names = [job.lane]
        if job.state is JobState.QUEUED and job.kind not in place.WITHOUT_DEVICE:
            names = list(self.names.for_device(job.device))
        return [self._lanes[name] for name in names if name in self._lanes]

    def _before(self, job: Job) -> list[str]:
        """The run ids of the queued jobs that are due before it, on the lanes that may run it."""
        if job.state is not JobState.QUEUED:
            return []
        devices = tuple(sorted({device for lane in self._lanes_of(job) for device in self._taken_by(lane)}))
        if self._queues_of != self._store.version:  # they are asked for job by job, and change with the store alone
            self._queues_of, self._queues = self._store.version, {}
        if devices not in self._queues:
            self._queues[devices] = self._store.due(*devices)
        queue = self._queues[devices]
        return queue[: queue.index(job.run_id)] if job.run_id in queue else []

    async def unload(self, model: str) -> list[str]:
        """Drop a warm model on every lane; gives the names of what was dropped. Raises InvalidInput where it may be in use.

        A lane that is busy with another model keeps no other lane from dropping this one.
        """
        dropped: list[str] = []
        busy: list[tuple[Lane, InvalidInput]] = []
        for lane in [lane for lane in self._lanes.values() if lane.device not in place.WITHOUT_DEVICE.values()]:
            try:
                dropped += await lane.unload(model)
            except InvalidInput as refusal:
                busy.append((lane, refusal))
        in_the_way = [reason for lane, reason in busy if any(warm.name == model for warm in lane.warm_models())]
        if not dropped:  # by another name it may be warm on any of them
            in_the_way += [reason for _, reason in busy]
        if in_the_way:
            raise in_the_way[0]
        return dropped

    def warm_models(self) -> list[WarmModel]:
        return [model for lane in self._lanes.values() for model in lane.warm_models()]

    def worker_pids(self) -> list[int]:
        return [pid for lane in self._lanes.values() if (pid := lane.pid)]

    def workers(self) -> list[WorkerView]:
        return [lane.view() for name, lane in self._lanes.items() if lane.pid or not self.names.is_gone(name)]

    # what lanes ask

    def next_due(self, lane: Lane) -> Job | None:
        """The job that a free lane is to run now; what a later one overtakes because its model is warm is counted."""
        begun = self._ledger.unwritten  # though the database says they are queued
        runnable = self._store.runnable(*self._taken_by(lane))
        due = [job for job in runnable if job.run_id not in begun and self._placement.may_take(lane, job)]
        choice = self._placement.choose(lane, due)
        if choice is None:
            return None
        job, passed = choice.job, choice.passed
        if passed:
            with contextlib.suppress(StateNotWritten):  # on a full disk it may be overtaken once more
                self._store.update_job(passed.run_id, passed_over=passed.passed_over + 1)
            self._ledger.note(job.run_id, f"goes before {passed.run_id}, because {choice.goes_before_because}")
        if choice.why:
            self._ledger.note(job.run_id, f"placed on {choice.device}: {choice.why}")
        return replace(job, device=choice.device)

    def _taken_by(self, lane: Lane) -> tuple[str, ...]:
        """The devices of the jobs that a lane may begin now.

        Those that any of several may run wait until all of these know which jobs the workers of an earlier daemon are at.
        """
        devices = self.names.taken_by(lane.device)
        if self._not_begun <= {lane.device}:
            return devices
        return tuple(device for device in devices if device == lane.device or device not in (AUTO, CPU))

    def lane_begun(self, lane: Lane) -> None:
        """A lane has found its worker of before, or that it has none."""
        if self._not_begun:
            self._not_begun.discard(lane.device)
            if not self._not_begun:
                self.wake_all()

    def lane_changed(self, lane: Lane) -> None:
        """A lane is at another job, or free: others may have something to do that was left to it."""
        for other in self._lanes.values():
            if other is not lane:
                other.wake()

    def does_not_fit(self, lane: Lane, job: Job, error: DoesNotFit) -> DoesNotFit | None:
        """A job does not fit on a lane: None where another one is to try it, else why it fits nowhere."""
        return error if job.kind in place.WITHOUT_DEVICE else self._placement.refused(lane, job, error)

    def has_run(self, course: Course, was_warm: bool) -> None:
        """A job has come to a good end."""
        self._placement.pace.ended(course, was_warm)

    def is_gone(self, device: str) -> bool:
        """Whether this daemon does not have such a lane any more."""
        return self.names.is_gone(device)

    def command_for(self, job: Job) -> RunJob:
        """What a worker is told so that it can do the job."""
        return RunJob(
            kind=job.kind,
            run_id=job.run_id,
            spec=job.spec,
            command=job.command,
            options=job.run_options().model_dump(),
            access=self._access(job),
            folder=str(self._settings.runs / job.run_id),
            limits=self._limits(job.device),
            device=job.device,
            memory=self._plan_memory(job.device) if job.kind == "plan" else None,
        )

    def _plan_memory(self, device: str) -> PlanMemory:
        lane = self._lanes.get(device)
        memory = (
            lane.plan_memory()
            if lane
            else PlanMemory(free_bytes=telemetry.free_bytes(device), each=telemetry.free_each(device))
        )
        if memory.free_bytes is None and self.names.sharers(device) > 1:
            return replace(
                memory, free_bytes=telemetry.free_of_share(self._share_bytes(device), lane.pid if lane else None)
            )
        return memory

    def _room_bytes(self, device: str) -> int:
        """Bytes that a model could find there, once those that are warm and not pinned have gone."""
        memory = self._plan_memory(device)
        return (memory.free_bytes or 0) + sum(copy.size_bytes for copy in memory.warm if not copy.pinned)

    def _share_bytes(self, device: str) -> int:
        return telemetry.cpu_share_bytes(self.names.sharers(device), [os.getpid(), *self.worker_pids()])

    def _limits(self, device: str) -> Limits:
        """What a job may take on a device: CPU lanes have a share each of the budget, and of the memory."""
        limits, sharers = Limits(**self._settings.limits()), self.names.sharers(device)
        if sharers == 1:
            return limits
        budget = None if limits.budget_bytes is None else limits.budget_bytes // sharers
        return replace(limits, budget_bytes=budget, share_bytes=self._share_bytes(device))

    def _access(self, job: Job) -> JsonMap:
        """How the job's shell reaches the Hub, with its token if it is still known, and without the daemon's in any case."""
        return {**job.access, "token": self._tokens.get(job.run_id, "")}

    def _lane(self, name: str) -> Lane:
        if name not in self._lanes:
            self._lanes[name] = self._make_lane(
                name,
                self._settings,
                self,
                self._ledger,
                self._outcomes,
                self._clock,
                self._troubles,
                self.names.sharers(name),
            )
        return self._lanes[name]
