"""The jobs of a daemon: submitted, queued, paused, cancelled, followed, pruned. `lanes.py` runs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from cwa_daemon.base.settings import Settings
from cwa_daemon.control import queue, telemetry
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.copies import Copies
from cwa_daemon.control.deaths import START, Cause, Death, why_not_again
from cwa_daemon.control.journal import Journal, OnEvent
from cwa_daemon.control.lanes import Lane
from cwa_daemon.control.store import Store
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.pipe import place
from cwa_daemon.protocol import (
    HIGHEST_PRIORITY,
    TERMINAL_STATES,
    JobOptions,
    JobState,
    JobView,
    WarmModel,
    WorkerView,
)
from cwa_engine.base.errors import (
    Cancelled,
    CwaError,
    InvalidInput,
    NotFound,
    OutputTaken,
    QueueFull,
    StateNotWritten,
    WorkerDied,
    did_you_mean,
)
from cwa_engine.records.output import claim_output
from cwa_engine.spec import RunSpec

log = logging.getLogger(__name__)

_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that reads as another letter


def new_run_id(model: str) -> str:
    """`20261123-143205-smollm2-135m-k7q2`: when, what, and four letters that make it one of a kind."""
    slug = re.sub(r"[^a-z0-9.]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-.")[:40] or "model"
    tail = "".join(secrets.choice(_ID_ALPHABET) for _ in range(4))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{tail}"


def options_of(job: dict[str, Any]) -> JobOptions:
    """How a job is to be run; a job of an earlier schema has no options, and takes the usual ones."""
    kept = {name: value for name, value in job["options"].items() if name != "access"}
    return JobOptions(priority=job["priority"], **kept)


class Jobs:
    """All jobs of a daemon. `on_event(run_id, event)` is called after an event of that job was stored."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        on_event: OnEvent,
        troubles: Troubles | None = None,
    ) -> None:
        self.clock = AwakeClock()
        self.troubles = troubles or Troubles()
        self._store = store
        self._settings = settings
        self._lanes: dict[str, Lane] = {}
        self._tokens: dict[str, str] = {}  # Hub tokens of waiting jobs; in memory only
        self.journal = Journal(store, settings.runs, on_event, self._moved)
        self._copies = Copies(lambda run_id, text: self.journal.note(run_id, text, "warning"), self.journal.copied)

    # from submission to end

    def recover(self) -> None:
        """After a start: copy what is not copied yet, and begin the lanes; each looks for the worker that it had before."""
        for job in self._store.to_be_copied():
            self._copy(job)
        running = self._store.jobs(limit=10_000, state=JobState.RUNNING)
        lanes = {queue.lane_of(job) for job in running}
        for lane in {*lanes, *place.lanes(self._settings.workers), *self._store.lanes_with_queued_jobs()}:
            self._lane(lane).wake()

    def taken_up(self, run_id: str, lane: str) -> dict[str, Any] | None:
        """The job that a worker of an earlier daemon is at; None where it is not to go on with it."""
        job = self._store.job(run_id)
        if job is None or queue.lane_of(job) != lane:
            return None
        if job["state"] == JobState.QUEUED:  # that it had begun did not fit on the full disk
            self.journal.move(run_id, JobState.RUNNING)
        elif job["state"] != JobState.RUNNING:
            return None
        self.journal.note(run_id, "the daemon was started anew, and the worker has gone on meanwhile")
        return job

    def settle(self, lane: str, running: str | None) -> None:
        """End or queue again the jobs of a lane that ran when the last daemon ended, but for the one that goes on."""
        for job in self._store.jobs(limit=10_000, state=JobState.RUNNING):
            if queue.lane_of(job) == lane and job["run_id"] != running:
                stage = self._store.last_stage(job["run_id"]) or START
                death = Death("the daemon ended while this ran", Cause.OTHERS, stage=stage)
                self.journal.move(job["run_id"], *self.after_death(job, death))

    def last_written(self, run_id: str) -> int:
        """The number of the last message of its worker that the store has, see `Outbox`."""
        return self._store.last_number(run_id)

    def submit(
        self,
        kind: str,
        spec: dict[str, Any],
        device: str,
        client_key: str,
        command: str,
        access: dict[str, Any],
        options: JobOptions,
        retry_of: str | None = None,
        owner: str = "",
    ) -> str:
        """Queue a job and give its run id; the same client key again gives the same run id."""
        if known := self._store.job_by_client_key(client_key):
            return str(known["run_id"])
        waiting = self._store.count(JobState.QUEUED) + self._store.count(JobState.PAUSED)
        if waiting >= self._settings.max_queue:
            raise QueueFull(f"{self._settings.max_queue} jobs are queued already", hint="wait, or cancel some")
        after = self._predecessor(options.after) if options.after else None
        if spec["output"] and not options.force:
            self._check_nobody_writes(spec)
        run_id = new_run_id(spec["model"])
        token = access.get("token")
        reach = {**access, "token": ""}  # never the daemon's own
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
            priority=options.priority,
            after_run=after,
            options={**options.model_dump(exclude={"priority", "after"}), "access": reach},
            owner=owner,
        )
        if token:
            self._tokens[run_id] = token
        self.journal.record(run_id, {"kind": "state", "state": JobState.QUEUED, "error": None})
        self._lane(queue.lane_of({"kind": kind, "device": device})).wake()
        return run_id

    def load_again(self, device: str, model: dict[str, Any], reason: str) -> None:
        """Queue the loading of a pinned model that was lost with its worker: first of all, for its runs count on it."""
        spec = RunSpec(**model["spec"])
        options = JobOptions(pin=True, priority=HIGHEST_PRIORITY)
        command = f"cwtool load {spec.model} --pin"
        fields = spec.model_dump(mode="json")
        try:
            run_id = self.submit("load", fields, device, secrets.token_hex(16), command, model["access"], options)
        except CwaError as error:
            log.error("%s is pinned and cannot be loaded again: %s", spec.model, error.message)
        else:
            self.journal.note(run_id, f"loaded again, for it is pinned: {reason}", "warning")

    def _check_nobody_writes(self, spec: dict[str, Any]) -> None:
        """Refuse an output folder that a job of another spec is going to fill."""
        for job in self._store.unfinished_with_output(spec["output"]):
            if job["spec"] != spec:
                raise OutputTaken(
                    f"{job['run_id']}, which is {job['state']}, is to write its files to {spec['output']}",
                    hint="give --output another folder, or --force to replace them",
                )

    def _predecessor(self, part: str) -> str:
        before = self.find(part)
        if before["state"] in TERMINAL_STATES - {JobState.DONE}:
            raise InvalidInput(f"{before['run_id']} is {before['state']}: nothing can wait for it to be done")
        return str(before["run_id"])

    def retry(self, run_id: str, client_key: str, access: dict[str, Any], owner: str = "") -> str:
        """Queue the same spec again as a new job. Raises OutputTaken where its output folder holds something else by now."""
        job = self.find(run_id)
        kind, spec, options = job["kind"], job["spec"], options_of(job)
        if spec["output"]:
            claim_output(Path(spec["output"]), RunSpec.model_validate(spec), options.force)
        device, command = job["device"], job["command"]
        return self.submit(kind, spec, device, client_key, command, access, options, job["run_id"], owner)

    def cancel(self, run_id: str) -> str:
        """Cancel a waiting or running job, or the copy of a run that is done; gives its state right after."""
        job = self.find(run_id)
        if job["state"] in (JobState.QUEUED, JobState.PAUSED):
            self.journal.move(job["run_id"], JobState.CANCELLED, Cancelled(f"cancelled while it was {job['state']}"))
        elif job["state"] == JobState.RUNNING:
            self._lane(queue.lane_of(job)).cancel(job["run_id"])
        else:
            self._copies.cancel(job["run_id"])
        return str(self.find(job["run_id"])["state"])

    def pause(self, part: str | None, owner: str | None = None) -> list[str]:
        """Keep a queued job, or all of them, or all of an owner, from being begun; gives their run ids."""
        return self._shift(part, JobState.QUEUED, JobState.PAUSED, owner)

    def resume(self, part: str | None, owner: str | None = None) -> list[str]:
        """Let a paused job, or all of them, or all of an owner, take its turn again; gives their run ids."""
        resumed = self._shift(part, JobState.PAUSED, JobState.QUEUED, owner)
        for lane in self._store.lanes_with_queued_jobs():
            self._lane(lane).wake()
        return resumed

    def _shift(self, part: str | None, before: JobState, after: JobState, owner: str | None) -> list[str]:
        jobs = [self.find(part)] if part else self._store.jobs(limit=self._settings.max_queue, state=before)
        jobs = [job for job in jobs if owner is None or job["owner"] == owner]
        for job in jobs:
            if job["state"] != before:
                raise InvalidInput(
                    f"{job['run_id']} is {job['state']}, not {before}",
                    hint="what runs can be cancelled and retried" if job["state"] == JobState.RUNNING else "",
                )
            self.journal.move(job["run_id"], after)
        return [job["run_id"] for job in jobs]

    def _moved(self, job: dict[str, Any], before: JobState, state: JobState) -> None:
        """What follows when the state of a job has changed."""
        run_id = job["run_id"]
        if before is JobState.RUNNING:
            self._remove_scratch(run_id)
        if state is JobState.DONE and job["kind"] == "run" and job["spec"]["output"]:
            self._copy(job)
        if state in TERMINAL_STATES:
            self._tokens.pop(run_id, None)
            self._release(run_id, state)

    def _release(self, run_id: str, state: JobState) -> None:
        """Who waited for this one may begin, or never will."""
        for job in self._store.waiting_for(run_id):
            if state is JobState.DONE:
                self._lane(queue.lane_of(job)).wake()
            else:
                reason = f"cancelled: {run_id}, which it was to follow, is {state}"
                self.journal.move(
                    job["run_id"], JobState.CANCELLED, Cancelled(reason, hint="submit it again without --after")
                )

    def _remove_scratch(self, run_id: str) -> None:
        """Remove what a worker that was killed while it saved has left half written."""
        for path in self._settings.runs.glob(f".{run_id}.*"):
            shutil.rmtree(path, ignore_errors=True)  # at the latest the next start does

    def is_saved(self, job: dict[str, Any]) -> bool:
        """Whether a run is done, whatever became of its worker: its folder appears whole, by a renaming."""
        return bool(job["kind"] == "run" and (self._settings.runs / job["run_id"]).is_dir())

    def after_death(self, job: dict[str, Any], death: Death) -> tuple[JobState, CwaError | None]:
        """The state that a job goes to after a death of its worker, and why; the death is kept with the job."""
        run_id = job["run_id"]
        if self.is_saved(job):
            self.journal.note(run_id, f"{death.reason}, just after this was saved; its files are whole")
            return JobState.DONE, None
        deaths = [*self.find(run_id)["deaths"], death.row()]
        with contextlib.suppress(StateNotWritten):  # on a full disk it may be run once more
            self._store.update_job(run_id, deaths=deaths)
        refusal = why_not_again(deaths, options_of(job).retries)
        if refusal is None:
            self.journal.note(run_id, f"{death.reason}; queued again", "warning")
            return JobState.QUEUED, None
        return JobState.FAILED, WorkerDied("; ".join(filter(None, (death.reason, refusal))), death.hint)

    def _copy(self, job: dict[str, Any]) -> None:
        folder, output = self._settings.runs / job["run_id"], Path(job["spec"]["output"])
        self._copies.begin(job["run_id"], folder, output, options_of(job).force)

    def tick(self) -> None:
        """What is looked after once a second: workers that hang, and states that a full disk did not take."""
        self.clock.tick()
        for lane in self._lanes.values():
            lane.check_health()
        if self._store.disk_full:
            self._store.restore_ballast()
        if self.journal.catch_up():
            for lane in self._lanes.values():
                lane.wake()

    # what clients see

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
            priority=job["priority"],
            after=job["after_run"],
            progress=self.journal.progress.get(job["run_id"]),
            folder=str(folder) if job["kind"] == "run" and job["state"] == JobState.DONE else None,
            last_seq=self._store.last_seq(job["run_id"]),
            copy_error=job["copy_error"],
            deaths=job["deaths"],
            owner=job["owner"],
        )

    def warm_models(self) -> list[WarmModel]:
        return [model for lane in self._lanes.values() for model in lane.warm_models()]

    def worker_pids(self) -> list[int]:
        return [pid for lane in self._lanes.values() if (pid := lane.pid)]

    def workers(self) -> list[WorkerView]:
        return [lane.view() for lane in self._lanes.values()]

    # what lanes ask

    def next_due(self, device: str, lane: Lane) -> dict[str, Any] | None:
        """The job that a free lane is to run now; what a later one overtakes because its model is warm is counted."""
        begun = self.journal.unwritten  # though the database says they are queued
        runnable = self._store.runnable(device)
        due = [job for job in runnable if job["run_id"] not in begun and not lane.must_wait(job["run_id"])]
        chosen = queue.choose_next(due, lane.is_warm)
        if chosen and chosen is not due[0]:
            with contextlib.suppress(StateNotWritten):  # on a full disk it may be overtaken once more
                self._store.update_job(due[0]["run_id"], passed_over=due[0]["passed_over"] + 1)
            self.journal.note(chosen["run_id"], f"goes before {due[0]['run_id']}, because its model is warm")
        return chosen

    def command_for(self, job: dict[str, Any]) -> dict[str, Any]:
        """What a worker is told so that it can do the job."""
        return {
            "op": "job",
            "kind": job["kind"],
            "run_id": job["run_id"],
            "spec": job["spec"],
            "command": job["command"],
            "options": options_of(job).model_dump(),
            "access": self._access(job),
            "folder": str(self._settings.runs / job["run_id"]),
            "limits": self._settings.limits(),
            "device": job["device"],
            "memory": self._memory(job["device"]) if job["kind"] == "plan" else None,
        }

    def _memory(self, device: str) -> dict[str, Any]:
        """What a plan must know of a device, see `Lane.memory`."""
        lane = self._lanes.get(device)
        return lane.memory() if lane else {"free_bytes": telemetry.free_bytes(device), "warm": []}

    def _access(self, job: dict[str, Any]) -> dict[str, Any]:
        """How the job's shell reaches the Hub, with its token if it is still known, and without the daemon's in any case."""
        return {**job["options"].get("access", {}), "token": self._tokens.get(job["run_id"], "")}

    async def unload(self, model: str) -> list[str]:
        """Drop a warm model on every device; gives the names of what was dropped."""
        lanes = [lane for lane in self._lanes.values() if lane.device != place.PLANS]
        return [name for lane in lanes for name in await lane.unload(model)]

    async def drain(self) -> None:
        """Let what runs come to its end, and begin nothing more."""
        await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))

    async def stop(self) -> None:
        """End all lanes and copies; what runs is queued again. What is queued or not copied waits for the next start."""
        await asyncio.gather(*(lane.stop() for lane in self._lanes.values()), self._copies.stop())
        await asyncio.to_thread(place.end_all, self._settings.workers)

    def _lane(self, device: str) -> Lane:
        if device not in self._lanes:
            self._lanes[device] = Lane(device, self, self._settings)
        return self._lanes[device]
