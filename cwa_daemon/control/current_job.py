"""The job that a lane runs now, and what its worker says of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cwa_daemon.base.settings import Settings
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.deaths import Death
from cwa_daemon.control.job import Job
from cwa_daemon.control.lane_worker import LaneWorker
from cwa_daemon.control.ledger import Ledger
from cwa_daemon.control.outcomes import Outcomes
from cwa_daemon.control.pace import Course
from cwa_daemon.control.stalls import CancelDeadline
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.pipe.messages import CancelJob, EventReport, Finished, Hello, LoadAgain
from cwa_daemon.pipe.place import WITHOUT_DEVICE
from cwa_engine.base.errors import Cancelled, CwaError, error_from_dict

SOON_S = 0.5  # after a cancel, before a job counts as cancelled of which nothing can be left behind
_BEFORE = ("start", "load")  # stages in which the model is not there yet

End = CwaError | Death | None  # how a job ended: with an error, with its worker, or well


def _future() -> asyncio.Future[End]:
    return asyncio.get_running_loop().create_future()


@dataclass
class Running:
    """The job that a lane runs now."""

    job: Job
    # A job that is cancelled may count as ended before the worker has done with it.
    ended: asyncio.Future[End] = field(default_factory=_future)
    free: asyncio.Future[End] = field(default_factory=_future)  # when the worker has done with it
    last_word: CwaError | None = None  # of a worker that ends with this job
    finished: int = 0  # the number of the report that told of its end
    ended_at: float | None = None  # seconds since the epoch
    cancel_asked: bool = False
    begun: float = 0.0  # by the clock that stands still while the machine sleeps; without the start of its worker
    is_heard: bool = False
    computing_since: float | None = None  # its model is there since then
    was_warm: bool = False
    was_adopted: bool = True  # how long it took before nobody knows
    deadline: CancelDeadline | None = None  # once the worker was asked to stop

    @property
    def run_id(self) -> str:
        return self.job.run_id

    @property
    def is_under_way(self) -> bool:
        return not self.ended.done()

    def heard(self, stage: str, now: float) -> None:
        """The worker, which has started by now, says that it is in a stage of it."""
        if not self.is_heard:
            self.begun, self.is_heard = now, True
        if self.computing_since is None and stage not in _BEFORE:
            self.computing_since = now

    def course(self, now: float) -> Course:
        """How far it is."""
        if self.computing_since is None:
            return Course(self.job, now - self.begun, None)
        return Course(self.job, self.computing_since - self.begun, now - self.computing_since)

    def end(self, how: End) -> None:
        """The worker has done with it."""
        for future in (self.ended, self.free):
            if not future.done():
                future.set_result(how)

    def count_as_cancelled(self) -> None:
        if self.is_under_way:
            self.ended.set_result(Cancelled("the run was cancelled"))


class CurrentJob:
    """At most one job, `running`, with the worker that does it. `load_again` queues pinned models that died with the worker."""

    def __init__(
        self,
        device: str,
        settings: Settings,
        ledger: Ledger,
        outcomes: Outcomes,
        clock: AwakeClock,
        troubles: Troubles,
        load_again: Callable[[str, LoadAgain, str], None],
        sharers: int = 1,
    ) -> None:
        self.device = device
        self.worker = LaneWorker(device, settings, clock, troubles, self, sharers)
        self.running: Running | None = None
        self._ledger = ledger
        self._outcomes = outcomes
        self._load_again = load_again
        self._clock = clock

    def take(self, job: Job) -> Running:
        """From now on this job is the one that runs here."""
        self.running = Running(job, begun=self._clock())
        self.worker.begin_job()
        return self.running

    def cancel(self, run_id: str) -> None:
        """Ask the worker to stop its run between two blocks, and kill it where it does not within the grace time.

        A worker may be busy for seconds with the vocabulary of a large model, or with its own start. Its job is cancelled
        all the same: it can leave nothing behind.
        """
        running = self.running
        if running and running.run_id == run_id and not running.cancel_asked:
            running.cancel_asked = True
            if self.worker.pid:
                self.pass_on_cancel(running)

    def pass_on_cancel(self, running: Running) -> None:
        """Tell the worker, which is there, that the job is cancelled."""
        self.worker.send(CancelJob(run_id=running.run_id))
        running.deadline = CancelDeadline(self.worker.stalls)
        if self.device in WITHOUT_DEVICE.values() or self.worker.stalls.stage in _BEFORE:
            asyncio.get_running_loop().call_later(SOON_S, running.count_as_cancelled)

    def heard_hello(self, hello: Hello) -> None:
        if hello.run_id is None:
            return
        if job := self._outcomes.taken_up(hello.run_id, self.device):
            self.take(job)
            self.worker.stalls.stage = hello.stage
            self.worker.written = self._outcomes.last_written(hello.run_id)
        else:
            self.worker.send(CancelJob(run_id=hello.run_id))

    def heard_event(self, report: EventReport) -> None:
        """Store what the worker says of its job, unless an earlier daemon has."""
        running = self.running
        of_this_job = running and running.run_id == report.run_id and running.is_under_way
        if running and of_this_job:
            running.heard(self.worker.stalls.stage, self._clock())
        if report.number > self.worker.written and of_this_job:
            self._ledger.record(
                report.run_id, {**report.event, "number": report.number, "time": report.time or time.time()}
            )
        self.worker.written = max(report.number, self.worker.written)

    def heard_end(self, report: Finished) -> None:
        running = self.running
        if running is None or running.run_id != report.run_id:  # an earlier daemon has heard of it
            self.worker.written = max(report.number, self.worker.written)
            return
        running.finished, running.ended_at = report.number, report.time
        error = error_from_dict(report.error) if report.error else None
        if report.ends:  # the next job needs another worker
            running.last_word = error
        else:
            running.end(error)

    def worker_died(self, death: Death, lost: tuple[LoadAgain, ...]) -> None:
        if self.running:
            self.running.ended_at = self.running.ended_at or death.time
            self.running.end(self.running.last_word or death)
        for model in lost:
            self._load_again(self.device, model, death.reason)
