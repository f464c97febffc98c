"""The worker of one lane, seen from the control process: found or started, listened to, looked after, ended."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Protocol

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import telemetry
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.deaths import Death
from cwa_daemon.control.stalls import StallDetector
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.control.worker_process import WorkerProcess
from cwa_daemon.pipe.messages import (
    Command,
    EventReport,
    Finished,
    Heartbeat,
    Hello,
    LoadAgain,
    Memory,
    ModelsReport,
    PlanMemory,
    Report,
    Unloaded,
    UnloadModel,
    WarmCopy,
    Written,
)
from cwa_daemon.pipe.place import Place
from cwa_daemon.protocol import WarmModel
from cwa_engine.base.errors import CwaError

log = logging.getLogger(__name__)

REACH_S, REACH_AGAIN_S = 5.0, 0.1  # for a worker of an earlier daemon to listen, and between two attempts


class Listener(Protocol):
    """Takes what a worker says of its job."""

    def heard_hello(self, hello: Hello) -> None:
        """A worker of an earlier daemon was found, and says which job it is at, before all that it has said of it."""

    def heard_event(self, report: EventReport) -> None: ...

    def heard_end(self, report: Finished) -> None: ...

    def worker_died(self, death: Death, lost: tuple[LoadAgain, ...]) -> None:
        """The worker has died unasked; `lost` brings back the pinned models that it had."""


class LaneWorker:
    """The worker process of a lane, which may be none, its warm models, and what it said last."""

    def __init__(
        self,
        device: str,
        settings: Settings,
        clock: AwakeClock,
        troubles: Troubles,
        listener: Listener,
        sharers: int = 1,
    ) -> None:
        self.device = device
        self.models: list[WarmModel] = []
        self.stalls = StallDetector(clock)  # of the job that runs
        self.written = 0  # the number of the worker's last report that is in the store
        self.is_starting = False  # a process that has begun, and is not ready for its job yet
        self._settings = settings
        self._clock = clock
        self._troubles = troubles
        self._listener = listener
        self._sharers = sharers
        self._process: WorkerProcess | None = None
        self._memory: Memory | None = None
        self._load_again: tuple[LoadAgain, ...] = ()  # what brings pinned models back
        self._requests = itertools.count(1)
        self._unloads: dict[int, asyncio.Future[list[str]]] = {}
        self._greeted: asyncio.Future[None] | None = None  # once a worker that was found has said hello, or died
        self._ending: asyncio.Task[None] | None = None  # of a worker that was idle

    @property
    def is_there(self) -> bool:
        """Whether a worker was started or found and not let go; it may be dead."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """The worker's process; None where none runs."""
        return self._process.pid if self._process else None

    # begun and ended

    async def reach(self) -> None:
        """Speak with the worker that is here, if there is one. One that does not answer is ended: no device gets two."""
        place, loop = self._place, asyncio.get_running_loop()
        patience_until = loop.time() + REACH_S
        while self._process is None and place.is_held():
            process = self._new_process()
            try:
                await process.adopt()
            except (OSError, CwaError) as error:  # it is ending, or has only begun
                await asyncio.sleep(REACH_AGAIN_S)
                if loop.time() > patience_until:
                    log.warning(
                        "the worker of %s, which an earlier daemon started, is not reached: %s", self.device, error
                    )
                    await asyncio.to_thread(place.end)
                continue
            self._process, self._greeted = process, loop.create_future()
            await self._greeted
        if self._process is None:
            place.clear()

    async def ready(self, say: Callable[[str], None]) -> None:
        """See that there is a worker; `say` hears that one is started. Raises OSError where none can be."""
        if self._ending:  # its lock is free when it has ended
            await self._ending
            self._ending = None
        if self._process is None or self._process.pid is None:
            say(f"starting a worker for {self.device}")
            self._memory, self.stalls = None, StallDetector(self._clock)
            self.written, self.is_starting = 0, True
            process = self._new_process()
            await process.start()
            self._process = process

    def begin_job(self) -> None:
        """From now on the next job is the one whose stalls count."""
        self.stalls = StallDetector(self._clock, self.stalls.processor_s)

    def end_because_idle(self) -> None:
        """End the worker; a job that comes now has another one started."""
        self._end(f"it has had nothing to do for {self._settings.worker_idle_s:g} s")

    def end_for_good(self) -> tuple[LoadAgain, ...]:
        """End the worker of a lane that is not to be any more; gives what brings its pinned models back elsewhere."""
        pinned = self._load_again
        self._end("this daemon does not have that lane")
        self._forget_models()
        return pinned

    def _end(self, because: str) -> None:
        if self._process:
            log.info("the worker of %s ends: %s", self.device, because)
            self._ending = asyncio.create_task(self._process.stop(grace_s=1.0))
            self._process = None

    async def stop(self) -> None:
        if self._process:
            await self._process.stop(grace_s=1.0)
        if self._ending:
            await self._ending
        self._forget_models()

    def _new_process(self) -> WorkerProcess:
        log_file = self._settings.logs / f"worker-{self.device.replace(':', '-')}.log"
        return WorkerProcess(self._place, log_file, self._clock, self._heard, self._died, self._sharers)

    @property
    def _place(self) -> Place:
        return Place(self._settings.workers, self.device)

    # told

    def send(self, command: Command) -> None:
        """Tell the worker; where none lives nobody hears it."""
        if self._process and self._process.pid:
            self._process.send(command)

    def kill(self, because: str, hint: str = "") -> None:
        if self._process:
            self._process.kill(because, hint)

    def acknowledge(self) -> None:
        """Tell the worker what it need not keep any more."""
        self.send(Written(number=self.written))

    async def unload(self, model: str) -> list[str]:
        """Have a model dropped; gives the names of what was."""
        if not self.pid:
            return []
        request = next(self._requests)
        self._unloads[request] = asyncio.get_running_loop().create_future()
        self.send(UnloadModel(model=model, request=request))
        return await self._unloads[request]

    @property
    def is_unloading(self) -> bool:
        """Whether it was asked to drop a model and has not answered yet."""
        return bool(self._unloads)

    # looked after

    def look_after(self) -> bool:
        """Once a second: kill a worker that hangs. False where there is none, or nothing can be said of it now."""
        if self._process is None or self._process.pid is None:
            return False
        self._process.look_after()
        if self._clock.has_just_woken:
            return False
        if (silence_s := self._process.silence_s) > self._settings.worker_silence_s:
            self.kill(f"it hung, nothing was heard of it for {silence_s:.0f} s")
            return False
        return True

    def plan_memory(self) -> PlanMemory:
        """What a plan must know of the device."""
        return _plan_memory(self.device, self._memory if self.pid else None, self.models)

    # heard

    def _heard(self, report: Report) -> None:
        """Take a report in. One that fails, as with a database that is damaged, is told of, and the next ones are heard."""
        subject = f"hearing the worker of {self.device}"
        try:
            self._take_in(report)
        except Exception as error:
            log.exception("%s failed", subject)
            self._troubles.report(subject, f"{subject} failed: {error}; see the log")

    def _take_in(self, report: Report) -> None:
        self.stalls.heard(report)
        if not isinstance(report, Heartbeat):  # which a thread of its own gives from the first moment on
            self.is_starting = False
        match report:
            case Hello():
                self._heard_hello(report)
            case EventReport():
                self._listener.heard_event(report)
            case Finished():
                self._listener.heard_end(report)
            case Heartbeat():
                self._memory = report.memory
                self.acknowledge()
            case ModelsReport():
                # by the name of the lane: to its worker the device of "cpu:1" is "cpu"
                self.models = [WarmModel(**{**asdict(model), "device": self.device}) for model in report.models]
                self._memory, self._load_again = report.memory, report.again
            case Unloaded():
                self._unloads.pop(report.request).set_result(list(report.names))

    def _heard_hello(self, hello: Hello) -> None:
        log.info("the worker of %s, which an earlier daemon started, goes on: pid %s", self.device, self.pid)
        try:
            self._listener.heard_hello(hello)
        finally:
            if self._greeted and not self._greeted.done():
                self._greeted.set_result(None)

    def _died(self, death: Death) -> None:
        self.is_starting = False
        if self._greeted and not self._greeted.done():
            self._process = None  # it had no job, and was ending
            self._greeted.set_result(None)
        lost = self._load_again
        reason = death.reason
        if self.models:
            reason = f"{reason}; lost with it: {', '.join(model.name for model in self.models)}"
        log.warning("%s", reason)
        self._forget_models()
        self._listener.worker_died(death.of_job(reason, self.stalls.stage), lost)

    def _forget_models(self) -> None:
        self.models, self._load_again = [], ()
        for waiting in self._unloads.values():
            waiting.set_result([])
        self._unloads.clear()


def _plan_memory(device: str, memory: Memory | None, models: list[WarmModel]) -> PlanMemory:
    """What is free on a device when no run is under way, and what is warm; `memory` is None where no worker tells.

    What the worker holds beside its warm models it holds for the run, and gives back after it.
    """
    if memory is None:
        free = telemetry.free_bytes(device)
    else:
        free = memory.free + max(0, memory.held - sum(model.size_bytes for model in models))
    warm = tuple(
        WarmCopy(name=model.name, dtype=model.dtype, size_bytes=model.size_bytes, pinned=model.pinned)
        for model in models
    )
    return PlanMemory(free_bytes=free, warm=warm, each=telemetry.free_each(device))
