"""A lane: a worker process, the device it computes on and its warm models, where one job runs after the other."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import time
from typing import Any, Protocol

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import telemetry
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.deaths import Cause, Death
from cwa_daemon.control.headway import Headway, Overdue
from cwa_daemon.control.journal import Journal
from cwa_daemon.control.supervise import Troubles, supervise
from cwa_daemon.control.worker_process import Worker
from cwa_daemon.pipe.place import PLANS, Place
from cwa_daemon.protocol import JobState, WarmModel, WorkerView
from cwa_engine.base.errors import Cancelled, CwaError, DoesNotFit, InvalidInput, error_from_dict

log = logging.getLogger(__name__)

REACH_S, REACH_AGAIN_S = 5.0, 0.1  # for a worker of an earlier daemon to listen, and between two attempts
LOOK_AGAIN_S = 5.0  # before a job that waits for memory is tried again
SOON_S = 0.5  # after a cancel, before a job counts as cancelled of which nothing can be left behind
_STUCK_HINT = (
    "look at the model's files and the texts: a network drive may be gone, a pipe without a writer; "
    "CWTOOL_STAGE_IDLE_S and CWTOOL_STAGE_STEP_S set how long is waited"
)


class Orders(Protocol):
    """What a lane asks of those who know all jobs."""

    journal: Journal
    clock: AwakeClock
    troubles: Troubles

    def next_due(self, device: str, lane: Lane) -> dict[str, Any] | None: ...
    def command_for(self, job: dict[str, Any]) -> dict[str, Any]: ...
    def taken_up(self, run_id: str, lane: str) -> dict[str, Any] | None: ...
    def settle(self, lane: str, running: str | None) -> None: ...
    def last_written(self, run_id: str) -> int: ...
    def is_saved(self, job: dict[str, Any]) -> bool: ...
    def after_death(self, job: dict[str, Any], death: Death) -> tuple[JobState, CwaError | None]: ...
    def load_again(self, device: str, model: dict[str, Any], reason: str) -> None: ...
    def cancel(self, run_id: str) -> object: ...


class Lane:
    """One device, or none for plans: its worker process, its warm models, and the job that runs there now."""

    def __init__(self, device: str, jobs: Orders, settings: Settings) -> None:
        self.device = device
        self.models: list[WarmModel] = []
        self._jobs = jobs
        self._settings = settings
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._worker: Worker | None = None
        self._running: dict[str, Any] | None = None  # the job
        self._ended: asyncio.Future[CwaError | Death | None] | None = None  # of the job that runs: how it ended
        self._free: asyncio.Future[None] | None = None  # when the worker has done with it
        self._last_word: CwaError | None = None  # of a worker that ends with this job
        self._clock = jobs.clock
        self._headway = Headway(self._clock)  # of the job that runs
        self._idle_since = self._clock()
        self._memory: dict[str, int] | None = None  # bytes `free` on the device and `held` there by the worker
        self._load_again: list[dict[str, Any]] = []  # what brings pinned models back
        self._ending: asyncio.Task[None] | None = None  # of a worker that was idle
        self._cancel_asked = False
        self._cancels_before_adoption: set[str] = set()  # run ids
        self._overdue: Overdue | None = None  # once the worker was asked to stop
        self._not_before: dict[str, float] = {}  # run id -> when a job that waits for memory is tried again
        self._requests = itertools.count(1)
        self._unloads: dict[int, asyncio.Future[list[str]]] = {}
        self._draining = False
        self._greeted: asyncio.Future[None] | None = None  # once a worker that was found has said what it does, or died
        self._written = 0  # the number of the worker's last message that is in the store
        self._finished = 0  # and of the one that told of the end of its job
        self._task = supervise(f"the lane of {device}", self._run, jobs.troubles)

    @property
    def run_id(self) -> str | None:
        """The job that runs now."""
        return self._running["run_id"] if self._running else None

    @property
    def pid(self) -> int | None:
        """The worker's process; None where none runs."""
        return self._worker.pid if self._worker else None

    def wake(self) -> None:
        self._work.set()

    def is_warm(self, job: dict[str, Any]) -> bool:
        """Whether a job finds its model in memory, as far as names tell; only the worker knows for certain."""
        return any(model.name == job["spec"]["model"] for model in self.models)

    def must_wait(self, run_id: str) -> bool:
        """Whether a job has just been told that its model does not fit."""
        return time.monotonic() < self._not_before.get(run_id, 0.0)

    def cancel(self, run_id: str) -> None:
        """Ask the worker to stop its run between two blocks, and kill it where it does not within the grace time.

        A worker may be busy for seconds with the vocabulary of a large model, or with its own start. Its job is cancelled
        all the same: it can leave nothing behind.
        """
        if run_id != self.run_id:  # it ran under an earlier daemon, and its worker has not been reached yet
            self._cancels_before_adoption.add(run_id)
        elif not self._cancel_asked:
            self._cancel_asked = True
            if self._worker and self._worker.pid:
                self._pass_on_cancel(self._worker)

    def _pass_on_cancel(self, worker: Worker) -> None:
        worker.send({"op": "cancel", "run_id": self.run_id})
        self._overdue = Overdue(self._headway)
        if self._ended and (self.device == PLANS or self._headway.stage in ("start", "load")):
            asyncio.get_running_loop().call_later(SOON_S, _count_as_cancelled, self._ended)

    def check_health(self) -> None:
        """Kill a worker that hangs or whose job is stuck, and end one that has had nothing to do for long."""
        worker, settings = self._worker, self._settings
        if worker is None or worker.pid is None:
            return
        worker.look_after()
        if self._clock.has_just_woken:
            return
        if worker.silence_s > settings.worker_silence_s:
            worker.kill(f"it hung, nothing was heard of it for {worker.silence_s:.0f} s")
        elif self._running:
            if self._overdue and (late := self._overdue.complaint(settings.cancel_grace_s)):
                worker.kill(late)
            elif stuck := self._headway.complaint(settings.stage_idle_s, settings.stage_step_s):
                worker.kill(stuck, _STUCK_HINT)
        elif not self.models and not self._unloads and self._clock() - self._idle_since > settings.worker_idle_s:
            log.info("the worker of %s ends: it has had nothing to do for %g s", self.device, settings.worker_idle_s)
            self._worker = None  # a job that comes now has another one started
            self._ending = asyncio.create_task(worker.stop(grace_s=1.0))

    async def unload(self, model: str) -> list[str]:
        """Ask the worker to drop a model. Raises InvalidInput while a run is under way, for it may be in use.

        A job that waits for memory tries again now and then. Such a try uses no model, and ends within moments.
        """
        if not self._worker or not self._worker.pid:
            return []
        if self._running and self._running["run_id"] not in self._not_before:
            raise InvalidInput(
                f"{self.device} is busy with {self.run_id}", hint="unload when it has ended, or cancel it first"
            )
        request = next(self._requests)
        self._unloads[request] = asyncio.get_running_loop().create_future()
        self._worker.send({"op": "unload", "model": model, "request": request})
        return await self._unloads[request]

    def warm_models(self) -> list[WarmModel]:
        used = self._running["spec"]["model"] if self._running else None
        return [model.model_copy(update={"in_use": model.name == used}) for model in self.models]

    def memory(self) -> dict[str, Any]:
        """What a plan must know of the device: what is free there when no run is under way, and what is warm.

        What the worker holds beside its warm models it holds for the run, and gives back after it.
        """
        memory = self._memory if self.pid else None
        if memory is None:
            free = telemetry.free_bytes(self.device)
        else:
            free = memory["free"] + max(0, memory["held"] - sum(model.size_bytes for model in self.models))
        return {"free_bytes": free, "warm": [model.model_dump() for model in self.models]}

    def view(self) -> WorkerView:
        pid = self.pid
        state = "busy" if self._running else "idle" if pid else "stopped"
        return WorkerView(
            device=self.device, pid=pid, state=state, run_id=self.run_id, memory_bytes=telemetry.process_memory(pid)
        )

    async def drain(self) -> None:
        """Begin nothing more, and wait until what runs has ended."""
        self._draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        broken_off = self._running if self._ended and not self._ended.done() else None  # cancelled with who awaits it
        self._task.cancel()
        if self._worker:
            await self._worker.stop(grace_s=1.0)
        if self._ending:
            await self._ending
        self._forget_models()
        if broken_off:
            stop = Death("the daemon was stopped", Cause.STOP, stage=self._headway.stage)
            self._jobs.journal.move(broken_off["run_id"], *self._outcome(broken_off, stop))

    async def _run(self) -> None:
        if self._running:  # this task has failed when the job had ended, and is begun again
            await self._see_it_end(self._running)
            self._idle.set()
        elif self._worker is None:
            await self._adopt()
        while True:
            job = None if self._draining else self._jobs.next_due(self.device, self)
            if job is None:
                self._work.clear()
                await self._work.wait()
                continue
            self._idle.clear()
            await self._run_job(job)
            self._idle.set()

    async def _adopt(self) -> None:
        """Take over the worker that an earlier daemon has left here, with the job it is at; other jobs lost theirs."""
        await self._reach()
        self._jobs.settle(self.device, self.run_id)
        while self._cancels_before_adoption:
            self._jobs.cancel(self._cancels_before_adoption.pop())
        if self._running:
            self._idle.clear()
            await self._see_it_end(self._running)
            self._idle.set()

    async def _reach(self) -> None:
        """Speak with the worker that is here, if there is one. One that does not answer is ended: no device gets two."""
        place, loop = self._place, asyncio.get_running_loop()
        patience_until = loop.time() + REACH_S
        while self._worker is None and place.is_held():
            worker = self._new_worker()
            try:
                await worker.adopt()
            except (OSError, CwaError) as error:  # it is ending, or has only begun
                await asyncio.sleep(REACH_AGAIN_S)
                if loop.time() > patience_until:
                    log.warning(
                        "the worker of %s, which an earlier daemon started, is not reached: %s", self.device, error
                    )
                    await asyncio.to_thread(place.end)
                continue
            self._worker, self._greeted = worker, loop.create_future()
            await self._greeted
        if self._worker is None:
            place.clear()

    def _heard_hello(self, worker: Worker, message: dict[str, Any]) -> None:
        """A worker that was found says which job it is at, before all that it has said of it."""
        run_id = message["run_id"]
        log.info("the worker of %s, which an earlier daemon started, goes on: pid %s", self.device, worker.pid)
        try:
            if job := run_id and self._jobs.taken_up(run_id, self.device):
                self._take(job)
                self._headway.stage = message["stage"]
                self._written = self._jobs.last_written(run_id)
            elif run_id:
                worker.send({"op": "cancel", "run_id": run_id})
        finally:
            if self._greeted and not self._greeted.done():
                self._greeted.set_result(None)

    def _take(self, job: dict[str, Any]) -> None:
        """From now on this job is the one that runs here."""
        self._running = job
        loop = asyncio.get_running_loop()
        self._ended, self._free = loop.create_future(), loop.create_future()
        self._last_word, self._headway = None, Headway(self._clock, self._headway.processor_s)

    async def _run_job(self, job: dict[str, Any]) -> None:
        self._take(job)
        try:
            self._jobs.journal.move(job["run_id"], JobState.RUNNING)
        except BaseException:
            self._running = None  # the database fails, and the job is queued as before
            raise
        try:
            worker = await self._ready_worker(job["run_id"])
        except OSError as failure:  # no memory or no processes left
            self._look_again_later(job["run_id"])
            self._end(Death(f"no worker can be started: {failure}", Cause.OTHERS, "free some memory and retry"))
        else:
            worker.send(self._jobs.command_for(job))
            if self._cancel_asked:  # while the worker was starting
                self._pass_on_cancel(worker)
        await self._see_it_end(job)

    async def _see_it_end(self, job: dict[str, Any]) -> None:
        assert self._ended and self._free
        state, reason = self._outcome(job, await self._ended)
        if state is not JobState.CANCELLED:
            await self._free
        if self._jobs.journal.state_of(job["run_id"]) is JobState.RUNNING:
            self._jobs.journal.move(job["run_id"], state, reason)
        await self._free
        self._written = max(self._written, self._finished)
        self._running, self._cancel_asked, self._overdue = None, False, None
        self._idle_since = self._clock()
        self._acknowledge()

    def _outcome(self, job: dict[str, Any], end: CwaError | Death | None) -> tuple[JobState, CwaError | None]:
        """The state that a job goes to, and why. Whatever came after a run was saved, it is done."""
        if end is None or self._jobs.is_saved(job):
            return JobState.DONE, None
        if isinstance(end, Cancelled):
            return JobState.CANCELLED, end
        if isinstance(end, Death) and self._cancel_asked:
            return JobState.CANCELLED, Cancelled(f"cancelled; {end.reason}")
        if isinstance(end, Death):
            return self._jobs.after_death(job, end)
        if isinstance(end, DoesNotFit) and job["options"].get("wait_for_memory") and not self._cancel_asked:
            self._look_again_later(job["run_id"])
            self._jobs.journal.note(job["run_id"], f"waiting for memory: {end.message}")
            return JobState.QUEUED, None
        return JobState.FAILED, end

    def _look_again_later(self, run_id: str) -> None:
        self._not_before[run_id] = time.monotonic() + LOOK_AGAIN_S
        asyncio.get_running_loop().call_later(LOOK_AGAIN_S + 0.05, self.wake)

    async def _ready_worker(self, run_id: str) -> Worker:
        """The device's worker, started where there is none."""
        if self._ending:  # its lock is free when it has ended
            await self._ending
            self._ending = None
        if self._worker is None or self._worker.pid is None:
            self._jobs.journal.note(run_id, f"starting a worker for {self.device}")
            self._memory, self._headway = None, Headway(self._clock)
            self._written = self._finished = 0
            worker = self._new_worker()
            await worker.start()
            self._worker = worker
        return self._worker

    def _new_worker(self) -> Worker:
        log_file = self._settings.logs / f"worker-{self.device.replace(':', '-')}.log"
        return Worker(self._place, log_file, self._clock, self._heard, self._died)

    @property
    def _place(self) -> Place:
        return Place(self._settings.workers, self.device)

    def _acknowledge(self) -> None:
        """Tell the worker what it need not keep any more."""
        if self._worker and self._worker.pid:
            self._worker.send({"op": "heard", "number": self._written})

    def _write(self, message: dict[str, Any]) -> None:
        """Store what the worker says of its job, unless an earlier daemon has."""
        number = message["number"]
        of_this_job = message["run_id"] == self.run_id and self._ended and not self._ended.done()
        if number > self._written and of_this_job:
            self._jobs.journal.record(message["run_id"], {**message["event"], "number": number})
        self._written = max(number, self._written)

    def _heard(self, message: dict[str, Any]) -> None:
        """Take a message in. One that fails, as with a database that is damaged, is told of, and the next ones are heard."""
        subject = f"hearing the worker of {self.device}"
        try:
            self._take_in(message)
        except Exception as error:
            log.exception("%s failed", subject)
            self._jobs.troubles.report(subject, f"{subject} failed: {error}; see the log")

    def _take_in(self, message: dict[str, Any]) -> None:
        self._headway.heard(message)
        match message["type"]:
            case "hello" if self._worker:
                self._heard_hello(self._worker, message)
            case "event":
                self._write(message)
            case "heartbeat":
                self._memory = message["memory"]
                self._acknowledge()
            case "models":
                self.models = [WarmModel(**model) for model in message["models"]]
                self._memory, self._load_again = message["memory"], message["again"]
            case "unloaded":
                self._unloads.pop(message["request"]).set_result(message["names"])
            case "finished" if message["run_id"] != self.run_id:  # which an earlier daemon has heard
                self._written = max(message["number"], self._written)
            case "finished":
                self._finished = message["number"]
                error = error_from_dict(message["error"]) if message["error"] else None
                if message["ends"]:  # the next job needs another worker
                    self._last_word = error
                else:
                    self._end(error)

    def _died(self, death: Death) -> None:
        if self._greeted and not self._greeted.done():
            self._worker = None  # it had no job, and was ending
            self._greeted.set_result(None)
        lost = ", ".join(model.name for model in self.models)
        reason = f"{death.reason}; lost with it: {lost}" if lost else death.reason
        log.warning("%s", reason)
        again = self._load_again
        self._forget_models()
        self._end(self._last_word or dataclasses.replace(death, reason=reason, stage=self._headway.stage))
        for model in again:
            self._jobs.load_again(self.device, model, reason)

    def _end(self, how: CwaError | Death | None) -> None:
        """The worker has done with its job."""
        if self._ended and not self._ended.done():
            self._ended.set_result(how)
        if self._free and not self._free.done():
            self._free.set_result(None)

    def _forget_models(self) -> None:
        self.models, self._load_again = [], []
        for waiting in self._unloads.values():
            waiting.set_result([])
        self._unloads.clear()


def _count_as_cancelled(ended: asyncio.Future[CwaError | Death | None]) -> None:
    if not ended.done():
        ended.set_result(Cancelled("the run was cancelled"))
