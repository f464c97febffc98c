"""A lane: one device, or the place of plans, where one job runs after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import telemetry, waits
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.current_job import CurrentJob, End, Running
from cwa_daemon.control.deaths import Cause, Death
from cwa_daemon.control.job import Job
from cwa_daemon.control.ledger import Ledger
from cwa_daemon.control.outcomes import Outcomes
from cwa_daemon.control.pace import Course
from cwa_daemon.control.supervise import Troubles, supervise
from cwa_daemon.pipe.messages import LoadAgain, PlanMemory, RunJob
from cwa_daemon.protocol import JobState, WarmModel, WorkerView
from cwa_engine.base.errors import Cancelled, CwaError, DoesNotFit, InvalidInput

LOOK_AGAIN_S = 5.0  # before a job that waits for memory is tried again
_STUCK_HINT = (
    "look at the model's files and the texts: a network drive may be gone, a pipe without a writer; "
    "CWTOOL_STAGE_IDLE_S and CWTOOL_STAGE_STEP_S set how long is waited"
)


class Orders(Protocol):
    """Where a lane gets its jobs."""

    def next_due(self, lane: Lane) -> Job | None:
        """The job that a free lane is to run now."""

    def command_for(self, job: Job) -> RunJob:
        """What a worker is told so that it can do the job."""

    def lane_begun(self, lane: Lane) -> None:
        """A lane has found its worker of before, or that it has none."""

    def lane_changed(self, lane: Lane) -> None:
        """A lane is at another job, or free: others may have something to do that was left to it."""

    def does_not_fit(self, lane: Lane, job: Job, error: DoesNotFit) -> DoesNotFit | None:
        """A job does not fit on a lane: None where another one is to try it, else why it fits nowhere."""

    def has_run(self, course: Course, was_warm: bool) -> None:
        """A job has come to a good end."""

    def is_gone(self, device: str) -> bool:
        """Whether this daemon does not have such a lane any more."""

    def load_again(self, device: str, model: LoadAgain, reason: str) -> None:
        """Queue the loading of a pinned model that was lost with its worker."""


class Lane:
    """The jobs of one device, one after the other."""

    def __init__(
        self,
        device: str,
        settings: Settings,
        orders: Orders,
        ledger: Ledger,
        outcomes: Outcomes,
        clock: AwakeClock,
        troubles: Troubles,
        sharers: int = 1,
    ) -> None:
        self.device = device
        self._settings = settings
        self._orders = orders
        self._ledger = ledger
        self._outcomes = outcomes
        self._clock = clock
        self._current = CurrentJob(device, settings, ledger, outcomes, clock, troubles, orders.load_again, sharers)
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._idle_since = clock()
        self._not_before: dict[str, float] = {}  # run id -> when a job that could not begin is tried again
        self._needs: dict[str, str] = {}  # run id -> what such a job waits for
        self._cancels_before_adoption: set[str] = set()  # run ids
        self._draining = False
        self._resting = False  # it waits for a job
        self._task = supervise(f"the lane of {device}", self._run, troubles)

    # what is asked of it

    @property
    def pid(self) -> int | None:
        """The worker's process; None where none runs."""
        return self._current.worker.pid

    def wake(self) -> None:
        self._work.set()

    def is_warm(self, job: Job) -> bool:
        """Whether a job finds its model in memory, as far as names tell; only the worker knows for certain."""
        return any(model.name == job.model for model in self._current.worker.models)

    @property
    def is_resting(self) -> bool:
        """Whether it waits for a job, and would begin one at once."""
        return self._resting and not self._draining

    @property
    def running_job(self) -> Job | None:
        """The job that it is at."""
        return self._current.running.job if self._current.running else None

    @property
    def course(self) -> Course | None:
        """How far the job is that it is at."""
        return self._current.running.course(self._clock()) if self._current.running else None

    def must_wait(self, run_id: str) -> bool:
        """Whether a job has just been told that its model does not fit."""
        return time.monotonic() < self._not_before.get(run_id, 0.0)

    def waits_for(self, job: Job, before: Sequence[str]) -> str:
        """What a job of this lane waits for, in words; empty for nothing. `before`: run ids that are due before it."""
        running = self._current.running
        if running and running.run_id == job.run_id:
            return "a worker that is starting" if self._current.worker.is_starting else ""
        return self.obstacle(job, len(before)) or waits.for_queued(before)

    def obstacle(self, job: Job, before: int = 0) -> str:
        """Why a queued job is not begun here now; empty where nothing is in its way. So many are due `before` it."""
        running = self._current.running
        if self._draining:
            return "the next daemon: this one ends when what runs has ended"
        if need := self._needs.get(job.run_id):
            return need
        if running:
            return waits.for_running(running.job, self.device, self._ledger.progress.get(running.run_id), before)
        return ""

    def warm_models(self) -> list[WarmModel]:
        worker, running = self._current.worker, self._current.running
        # its copy comes last, for workers tell of the most recently used one last; of one that loads it is not there yet
        named = [model for model in worker.models if running and model.name == running.job.model]
        used = named[-1] if named and worker.stalls.stage not in ("start", "load") else None
        return [model.model_copy(update={"in_use": model is used}) for model in worker.models]

    def plan_memory(self) -> PlanMemory:
        return self._current.worker.plan_memory()

    def view(self) -> WorkerView:
        pid, running = self.pid, self._current.running
        return WorkerView(
            device=self.device,
            pid=pid,
            state="busy" if running else "idle" if pid else "stopped",
            run_id=running.run_id if running else None,
            memory_bytes=telemetry.process_memory(pid),
        )

    async def unload(self, model: str) -> list[str]:
        """Ask the worker to drop a model. Raises InvalidInput while a run is under way, for it may be in use.

        A job that waits for memory tries again now and then. Such a try uses no model, and ends within moments.
        """
        if self.pid and self._current.running and self._current.running.run_id not in self._not_before:
            raise InvalidInput(
                f"{self.device} is busy with {self._current.running.run_id}",
                hint="unload when it has ended, or cancel it first",
            )
        return await self._current.worker.unload(model)

    def cancel(self, run_id: str) -> None:
        """Ask the worker to stop its run, see `CurrentJob.cancel`."""
        running = self._current.running
        if running and running.run_id == run_id:
            self._current.cancel(run_id)
        else:  # it ran under an earlier daemon, and its worker has not been reached yet
            self._cancels_before_adoption.add(run_id)

    def check_health(self) -> None:
        """Kill a worker that hangs or whose job is stuck, and end one that has had nothing to do for long."""
        worker, settings, running = self._current.worker, self._settings, self._current.running
        if not worker.look_after():
            return
        if not running and self._orders.is_gone(self.device):
            for model in worker.end_for_good():
                self._orders.load_again(
                    self.device, model, f"this daemon does not have the lane {self.device} any more"
                )
        elif running:
            if running.deadline and (late := running.deadline.complaint(settings.cancel_grace_s)):
                worker.kill(late)
            elif stuck := worker.stalls.complaint(settings.stage_idle_s, settings.stage_step_s):
                worker.kill(stuck, _STUCK_HINT)
        elif (
            not worker.models and not worker.is_unloading and self._clock() - self._idle_since > settings.worker_idle_s
        ):
            worker.end_because_idle()

    async def drain(self) -> None:
        """Begin nothing more, and wait until what runs has ended."""
        self._draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        broken_off = self._current.running if self._current.running and self._current.running.is_under_way else None
        self._task.cancel()
        await self._current.worker.stop()
        if broken_off:
            stop = Death("the daemon was stopped", Cause.STOP, stage=self._current.worker.stalls.stage)
            self._ledger.move(broken_off.run_id, *self._outcome(broken_off, stop))

    # its task

    async def _run(self) -> None:
        if self._current.running:  # this task has failed when the job had ended, and is begun again
            await self._see_it_end(self._current.running)
        elif not self._current.worker.is_there:
            await self._adopt()
        self._orders.lane_begun(self)
        while True:
            job = None if self._draining else self._orders.next_due(self)
            if job is None:
                self._work.clear()
                self._resting = True
                try:
                    await self._work.wait()
                finally:
                    self._resting = False
                continue
            await self._run_job(job)

    async def _adopt(self) -> None:
        """Take over the worker that an earlier daemon has left here, with the job it is at; other jobs lost theirs."""
        await self._current.worker.reach()
        running = self._current.running
        self._outcomes.settle(self.device, running.run_id if running else None)
        while self._cancels_before_adoption:
            run_id = self._cancels_before_adoption.pop()
            if running and running.run_id == run_id:
                self._current.cancel(run_id)
            elif self._ledger.state_of(run_id) is JobState.QUEUED:
                self._ledger.move(run_id, JobState.CANCELLED, Cancelled("cancelled before it was begun again"))
        self._orders.lane_begun(self)  # before its job ends, which may take hours
        if running:
            self._idle.clear()
            await self._see_it_end(running)

    async def _run_job(self, job: Job) -> None:
        was_warm = self.is_warm(job)
        running = self._current.take(job)
        running.was_warm, running.was_adopted = was_warm, False
        self._needs.pop(job.run_id, None)
        self._idle.clear()
        try:
            self._ledger.move(job.run_id, JobState.RUNNING, device=job.device)
        except BaseException:
            self._current.running = None  # the database fails, and the job is queued as before
            self._idle.set()
            raise
        self._orders.lane_changed(self)
        try:
            await self._current.worker.ready(lambda text: self._ledger.note(job.run_id, text))
        except OSError as failure:  # no memory or no processes left
            self._look_again_later(job.run_id, f"a worker, which cannot be started: {failure}")
            running.end(Death(f"no worker can be started: {failure}", Cause.OTHERS, "free some memory and retry"))
        else:
            self._current.worker.send(self._orders.command_for(job))
            if running.cancel_asked:  # while the worker was starting
                self._current.pass_on_cancel(running)
        await self._see_it_end(running)

    async def _see_it_end(self, running: Running) -> None:
        run_id = running.run_id
        state, reason = self._outcome(running, await running.ended)
        if state is not JobState.CANCELLED:
            await running.free
        if self._ledger.state_of(run_id) is JobState.RUNNING:
            self._ledger.move(run_id, state, reason, running.ended_at)
        await running.free
        if state is JobState.DONE and not running.was_adopted:
            self._orders.has_run(running.course(self._clock()), running.was_warm)
        self._current.worker.written = max(self._current.worker.written, running.finished)
        self._current.running = None
        self._idle_since = self._clock()
        self._current.worker.acknowledge()
        self._idle.set()
        self._orders.lane_changed(self)

    def _outcome(self, running: Running, end: End) -> tuple[JobState, CwaError | None]:
        """The state that a job goes to, and why. Whatever came after a run was saved, it is done."""
        job = running.job
        if end is None or self._outcomes.is_saved(job):
            return JobState.DONE, None
        if isinstance(end, Cancelled):
            return JobState.CANCELLED, end
        if isinstance(end, Death) and running.cancel_asked:
            return JobState.CANCELLED, Cancelled(f"cancelled; {end.reason}")
        if isinstance(end, Death):
            return self._outcomes.after_death(job, end)
        if isinstance(end, DoesNotFit) and job.run_options().wait_for_memory and not running.cancel_asked:
            self._look_again_later(job.run_id, f"memory: {end.message}")
            self._ledger.note(job.run_id, f"waiting for memory: {end.message}")
            return JobState.QUEUED, None
        if isinstance(end, DoesNotFit) and not running.cancel_asked:
            nowhere = self._orders.does_not_fit(self, job, end)
            if nowhere is None:
                self._ledger.note(
                    job.run_id, f"it does not fit on {self.device}, so another lane tries it: {end.message}"
                )
                return JobState.QUEUED, None
            return JobState.FAILED, nowhere
        return JobState.FAILED, end

    def _look_again_later(self, run_id: str, need: str) -> None:
        self._needs[run_id] = need
        self._not_before[run_id] = time.monotonic() + LOOK_AGAIN_S
        asyncio.get_running_loop().call_later(LOOK_AGAIN_S + 0.05, self.wake)
