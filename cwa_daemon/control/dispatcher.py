"""Which job runs where next: the lanes of all devices, and the commands for their workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import queue, telemetry, waits
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.job import Job
from cwa_daemon.control.lane import Lane
from cwa_daemon.control.ledger import Ledger
from cwa_daemon.control.outcomes import Outcomes
from cwa_daemon.control.store import Store
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.pipe import place
from cwa_daemon.pipe.messages import Limits, LoadAgain, PlanMemory, RunJob
from cwa_daemon.protocol import JobState, WarmModel, WorkerView
from cwa_engine.base.errors import StateNotWritten
from cwa_engine.base.plain import JsonMap

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
        self._queues: dict[str, list[str]] = {}  # lane -> run ids of the jobs that are due, in their order,
        self._queues_of = 0  # by this version of the store
        self._tokens: dict[str, str] = {}  # Hub tokens of waiting jobs; in memory only

    def recover(self) -> None:
        """After a start: begin the lanes that had jobs or workers; each looks for the worker that it had before."""
        running = {job.lane for job in self._store.jobs(limit=10_000, state=JobState.RUNNING)}
        for name in {*running, *place.lanes(self._settings.workers), *self._store.lanes_with_queued_jobs()}:
            self.wake(name)

    def wake(self, name: str) -> None:
        """Have a lane look whether there is anything to do."""
        self._lane(name).wake()

    def wake_all(self) -> None:
        """Have every lane look that has queued jobs."""
        for name in self._store.lanes_with_queued_jobs():
            self.wake(name)

    def cancel(self, job: Job) -> None:
        """Ask the worker of a job that runs to stop it."""
        self._lane(job.lane).cancel(job.run_id)

    def keep_token(self, run_id: str, token: str) -> None:
        """Remember the Hub token of a job until `forget_token`."""
        self._tokens[run_id] = token

    def forget_token(self, run_id: str) -> None:
        self._tokens.pop(run_id, None)

    def tick(self) -> None:
        """Once a second: look after the workers."""
        self._clock.tick()
        for lane in self._lanes.values():
            lane.check_health()

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
        lane = self._lanes.get(job.lane)
        if job.state not in (JobState.QUEUED, JobState.RUNNING) or lane is None:
            return ""
        predecessor = self._store.job(job.after_run) if job.after_run else None
        if predecessor and predecessor.state is not JobState.DONE:
            return waits.for_predecessor(predecessor.run_id)
        return lane.waits_for(job, self._before(job))

    def _before(self, job: Job) -> list[str]:
        """The run ids of the queued jobs of its lane that are due before it."""
        if job.state is not JobState.QUEUED:
            return []
        if self._queues_of != self._store.version:  # they are asked for job by job, and change with the store alone
            self._queues_of, self._queues = self._store.version, {}
        if job.lane not in self._queues:
            self._queues[job.lane] = self._store.due(job.lane)
        queue = self._queues[job.lane]
        return queue[: queue.index(job.run_id)] if job.run_id in queue else []

    async def unload(self, model: str) -> list[str]:
        """Drop a warm model on every device; gives the names of what was dropped."""
        lanes = [lane for lane in self._lanes.values() if lane.device not in place.WITHOUT_DEVICE.values()]
        return [name for lane in lanes for name in await lane.unload(model)]

    def warm_models(self) -> list[WarmModel]:
        return [model for lane in self._lanes.values() for model in lane.warm_models()]

    def worker_pids(self) -> list[int]:
        return [pid for lane in self._lanes.values() if (pid := lane.pid)]

    def workers(self) -> list[WorkerView]:
        return [lane.view() for lane in self._lanes.values()]

    # what lanes ask

    def next_due(self, lane: Lane) -> Job | None:
        """The job that a free lane is to run now; what a later one overtakes because its model is warm is counted."""
        begun = self._ledger.unwritten  # though the database says they are queued
        runnable = self._store.runnable(lane.device)
        due = [job for job in runnable if job.run_id not in begun and not lane.must_wait(job.run_id)]
        chosen = queue.choose_next(due, lane.is_warm)
        if chosen and chosen is not due[0]:
            with contextlib.suppress(StateNotWritten):  # on a full disk it may be overtaken once more
                self._store.update_job(due[0].run_id, passed_over=due[0].passed_over + 1)
            self._ledger.note(chosen.run_id, f"goes before {due[0].run_id}, because its model is warm")
        return chosen

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
            limits=Limits(**self._settings.limits()),
            device=job.device,
            memory=self._plan_memory(job.device) if job.kind == "plan" else None,
        )

    def _plan_memory(self, device: str) -> PlanMemory:
        lane = self._lanes.get(device)
        return lane.plan_memory() if lane else PlanMemory(free_bytes=telemetry.free_bytes(device))

    def _access(self, job: Job) -> JsonMap:
        """How the job's shell reaches the Hub, with its token if it is still known, and without the daemon's in any case."""
        return {**job.access, "token": self._tokens.get(job.run_id, "")}

    def _lane(self, name: str) -> Lane:
        if name not in self._lanes:
            self._lanes[name] = self._make_lane(
                name, self._settings, self, self._ledger, self._outcomes, self._clock, self._troubles
            )
        return self._lanes[name]
