"""The life of a job: its states, the queue of each device, and the lane that runs one job after another there."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from cwa_daemon.protocol import TERMINAL_STATES, JobView, StageProgress, WarmModel, WorkerView
from cwa_daemon.settings import Settings
from cwa_daemon.store import Store
from cwa_daemon.telemetry import process_memory
from cwa_daemon.workers import Worker
from cwa_engine.errors import (
    Cancelled,
    CwaError,
    InvalidInput,
    NotFound,
    QueueFull,
    WorkerDied,
    did_you_mean,
    error_from_dict,
)

log = logging.getLogger(__name__)


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # the daemon stopped or died while it ran


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED}),
    JobState.DONE: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.INTERRUPTED: frozenset(),
}
assert {state for state, moves in MOVES.items() if not moves} == TERMINAL_STATES

_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that reads as another letter


def new_run_id(model: str) -> str:
    """`20261123-143205-smollm2-135m-k7q2`: when, what, and four letters that make it one of a kind."""
    slug = re.sub(r"[^a-z0-9.]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-.")[:40] or "model"
    tail = "".join(secrets.choice(_ID_ALPHABET) for _ in range(4))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{tail}"


class Jobs:
    """All jobs of a daemon. `on_event(run_id)` is called after an event of that job was stored."""

    def __init__(self, store: Store, settings: Settings, on_event: Callable[[str], None]) -> None:
        self._store = store
        self._settings = settings
        self._on_event = on_event
        self._lanes: dict[str, Lane] = {}
        self._access: dict[str, dict[str, Any]] = {}  # Hub tokens of waiting jobs; in memory only
        self._progress: dict[str, StageProgress] = {}

    def recover(self) -> None:
        """After a start: what ran when the last daemon ended is interrupted, what was queued runs."""
        for job in self._store.jobs(limit=10_000, state=JobState.RUNNING):
            reason = CwaError(
                "the daemon ended while this ran", hint=f"`cwtool jobs retry {job['run_id']}` runs it again"
            )
            self.move(job["run_id"], JobState.INTERRUPTED, reason)
        for device in self._store.devices_with_queued_jobs():
            self._lane(device).wake()

    def submit(
        self,
        kind: str,
        spec: dict[str, Any],
        device: str,
        client_key: str,
        command: str,
        access: dict[str, Any],
        retry_of: str | None = None,
    ) -> str:
        """Queue a job and give its run id; the same client key again gives the same run id."""
        if known := self._store.job_by_client_key(client_key):
            return str(known["run_id"])
        if self._store.count(JobState.QUEUED) >= self._settings.max_queue:
            raise QueueFull(f"{self._settings.max_queue} jobs are queued already", hint="wait, or cancel some")
        run_id = new_run_id(spec["model"])
        self._access[run_id] = access
        self._store.add_job(
            run_id=run_id,
            kind=kind,
            state=JobState.QUEUED,
            spec=spec,
            command=command,
            device=device,
            client_key=client_key,
            retry_of=retry_of,
            created=time.time(),
        )
        self.record(run_id, {"kind": "state", "state": JobState.QUEUED, "error": None})
        self._lane(device).wake()
        return run_id

    def retry(self, run_id: str, client_key: str, access: dict[str, Any]) -> str:
        """Queue the same spec again as a new job."""
        job = self.find(run_id)
        return self.submit(
            job["kind"], job["spec"], job["device"], client_key, job["command"], access, retry_of=job["run_id"]
        )

    def cancel(self, run_id: str) -> str:
        """Cancel a queued or running job; gives its state right after. An ended job stays as it is."""
        job = self.find(run_id)
        if job["state"] == JobState.QUEUED:
            self.move(job["run_id"], JobState.CANCELLED, Cancelled("cancelled while it was queued"))
        elif job["state"] == JobState.RUNNING:
            self._lane(job["device"]).cancel(job["run_id"])
        return str(self.find(job["run_id"])["state"])

    def find(self, part: str) -> dict[str, Any]:
        """The job with this run id, or the only one that begins or ends so; "latest" is the last one submitted."""
        if part == "latest":
            latest = self._store.jobs(limit=1)
            if latest:
                return latest[0]
            raise NotFound("there is no job yet", hint="`cwtool run --model smollm2-135m` makes one")
        if exact := self._store.job(part):
            return exact
        matches = self._store.jobs_like(part) if part else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            some = ", ".join(job["run_id"] for job in matches[:3])
            raise InvalidInput(f"'{part}' may be {len(matches)} runs: {some}", hint="give more of the run id")
        near = did_you_mean(part, [job["run_id"] for job in self._store.jobs(limit=200)])
        raise NotFound(f"there is no run '{part}'", hint=near or "`cwtool jobs` lists all")

    def view(self, job: dict[str, Any]) -> JobView:
        folder = self._settings.runs / job["run_id"]
        return JobView(
            run_id=job["run_id"],
            kind=job["kind"],
            state=job["state"],
            model=job["spec"]["model"],
            spec=job["spec"],
            device=job["device"],
            created=job["created"],
            started=job["started"],
            finished=job["finished"],
            error=job["error"],
            retry_of=job["retry_of"],
            progress=self._progress.get(job["run_id"]),
            folder=str(folder) if job["kind"] == "run" and job["state"] == JobState.DONE else None,
            last_seq=self._store.last_seq(job["run_id"]),
        )

    def record(self, run_id: str, event: dict[str, Any]) -> None:
        """Store an event of a job, then tell that it is there."""
        if event["kind"] == "progress":
            self._progress[run_id] = StageProgress.of(event)
        self._store.append_event(run_id, event)
        self._on_event(run_id)

    def move(self, run_id: str, state: JobState, error: CwaError | None = None) -> None:
        """Bring a job into another state, once: the row and its event. A move that is not allowed is a defect."""
        before = JobState(self.find(run_id)["state"])
        if state not in MOVES[before]:
            raise RuntimeError(f"{run_id} cannot go from {before} to {state}")
        body = error.to_dict() if error else None
        moment = "started" if state is JobState.RUNNING else "finished"
        self._store.update_job(run_id, state=state, error=body, **{moment: time.time()})
        if state in TERMINAL_STATES:
            self._access.pop(run_id, None)
            self._progress.pop(run_id, None)
        self.record(run_id, {"kind": "state", "state": state, "error": body})
        log.info("%s %s%s", run_id, state, f": {error.message}" if error else "")

    def command_for(self, job: dict[str, Any]) -> dict[str, Any]:
        """What a worker is told so that it can do the job."""
        return {
            "op": "job",
            "kind": job["kind"],
            "run_id": job["run_id"],
            "spec": job["spec"],
            "command": job["command"],
            "access": self._access.get(job["run_id"], {}),
            "folder": str(self._settings.runs / job["run_id"]),
        }

    async def unload(self, model: str) -> list[str]:
        """Drop a warm model on every device; gives the names of what was dropped."""
        return [name for lane in list(self._lanes.values()) for name in await lane.unload(model)]

    def warm_models(self) -> list[WarmModel]:
        return [model for lane in self._lanes.values() for model in lane.warm_models()]

    def workers(self) -> list[WorkerView]:
        return [lane.view() for lane in self._lanes.values()]

    def count(self, state: JobState) -> int:
        return self._store.count(state)

    def next_queued(self, device: str) -> dict[str, Any] | None:
        return self._store.next_queued(device)

    async def stop(self) -> None:
        """End all lanes; what runs becomes interrupted and can be retried, what is queued stays queued."""
        await asyncio.gather(*(lane.stop() for lane in self._lanes.values()))

    def _lane(self, device: str) -> Lane:
        if device not in self._lanes:
            self._lanes[device] = Lane(device, self, self._settings)
        return self._lanes[device]


class Lane:
    """One device: its worker process, its warm models, and the job that runs there now."""

    def __init__(self, device: str, jobs: Jobs, settings: Settings) -> None:
        self.device = device
        self.models: list[WarmModel] = []
        self._jobs = jobs
        self._settings = settings
        self._work = asyncio.Event()
        self._worker: Worker | None = None
        self._running: str | None = None  # run id
        self._running_model = ""  # as the user wrote it
        self._ended: asyncio.Future[CwaError | None] | None = None  # of the job that runs
        self._cancel_asked = False
        self._grace: asyncio.TimerHandle | None = None  # kills a worker that does not answer a cancel
        self._requests = itertools.count(1)
        self._unloads: dict[int, asyncio.Future[list[str]]] = {}
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        self._work.set()

    def cancel(self, run_id: str) -> None:
        """Ask the worker to stop its run between two batches, and kill it where it does not within the grace time."""
        if run_id == self._running and not self._cancel_asked:
            self._cancel_asked = True
            if self._worker and self._worker.pid:
                self._pass_on_cancel(self._worker)

    def _pass_on_cancel(self, worker: Worker) -> None:
        worker.send({"op": "cancel", "run_id": self._running})
        self._grace = asyncio.get_running_loop().call_later(self._settings.cancel_grace_s, worker.kill)

    async def unload(self, model: str) -> list[str]:
        """Ask the worker to drop a model. Raises InvalidInput while a run is under way, for it may be in use."""
        if not self._worker or not self._worker.pid:
            return []
        if self._running:
            raise InvalidInput(
                f"{self.device} is busy with {self._running}", hint="unload when it has ended, or cancel it first"
            )
        request = next(self._requests)
        self._unloads[request] = asyncio.get_running_loop().create_future()
        self._worker.send({"op": "unload", "model": model, "request": request})
        return await self._unloads[request]

    def warm_models(self) -> list[WarmModel]:
        return [model.model_copy(update={"in_use": model.name == self._running_model}) for model in self.models]

    def view(self) -> WorkerView:
        pid = self._worker.pid if self._worker else None
        state = "busy" if self._running else "idle" if pid else "stopped"
        return WorkerView(
            device=self.device, pid=pid, state=state, run_id=self._running, memory_bytes=process_memory(pid)
        )

    async def stop(self) -> None:
        self._stopping = True
        self._task.cancel()
        if self._worker:
            await self._worker.stop(grace_s=1.0)
        if self._running:
            reason = CwaError("the daemon was stopped", hint=f"`cwtool jobs retry {self._running}` runs it again")
            self._jobs.move(self._running, JobState.INTERRUPTED, reason)

    async def _run(self) -> None:
        while True:
            job = self._jobs.next_queued(self.device)
            if job is None:
                self._work.clear()
                await self._work.wait()
                continue
            await self._run_job(job)

    async def _run_job(self, job: dict[str, Any]) -> None:
        self._running, self._running_model = job["run_id"], job["spec"]["model"]
        self._ended = asyncio.get_running_loop().create_future()
        self._jobs.move(self._running, JobState.RUNNING)
        try:
            worker = await self._ready_worker()
        except OSError as failure:  # no memory or no processes left
            self._ended.set_result(
                WorkerDied(f"no worker can be started: {failure}", hint="free some memory and retry")
            )
        else:
            worker.send(self._jobs.command_for(job))
            if self._cancel_asked:  # while the worker was starting
                self._pass_on_cancel(worker)
        error = await self._ended
        if self._grace:
            self._grace.cancel()
        if error is None:
            state = JobState.DONE
        elif isinstance(error, Cancelled):
            state = JobState.CANCELLED
        elif self._cancel_asked and isinstance(error, WorkerDied):
            state, error = JobState.CANCELLED, Cancelled("cancelled; the worker did not answer and was killed")
        else:
            state = JobState.FAILED
        run_id, self._running, self._running_model = self._running, None, ""
        self._cancel_asked, self._grace = False, None
        self._jobs.move(run_id, state, error)

    async def _ready_worker(self) -> Worker:
        """The device's worker, started where there is none."""
        if self._worker is None or self._worker.pid is None:
            note = {"kind": "note", "level": "info", "text": f"starting a worker for {self.device}"}
            self._jobs.record(str(self._running), note)
            log_file = self._settings.logs / f"worker-{self.device.replace(':', '-')}.log"
            worker = Worker(self.device, log_file, self._heard, self._died)
            await worker.start()
            self._worker = worker
        return self._worker

    def _heard(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "event":
                self._jobs.record(message["run_id"], message["event"])
            case "models":
                self.models = [WarmModel(**model) for model in message["models"]]
            case "unloaded":
                self._unloads.pop(message["request"]).set_result(message["names"])
            case "finished" if self._ended and not self._ended.done():
                self._ended.set_result(error_from_dict(message["error"]) if message["error"] else None)

    def _died(self, error: WorkerDied) -> None:
        self.models = []
        for waiting in self._unloads.values():
            waiting.set_result([])
        self._unloads.clear()
        if self._stopping:
            return
        log.warning("%s", error.message)
        if self._ended and not self._ended.done():
            self._ended.set_result(error)
