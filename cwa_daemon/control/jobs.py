"""The jobs of a daemon: submitted, paused, cancelled, retried; and what follows when one has ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from cwa_daemon.base.settings import Settings
from cwa_daemon.control.copies import Copies
from cwa_daemon.control.dispatcher import Dispatcher
from cwa_daemon.control.finding import find_job, view_of
from cwa_daemon.control.job import Job
from cwa_daemon.control.lane import Lane
from cwa_daemon.control.lane_names import CPU
from cwa_daemon.control.ledger import Ledger, OnEvent
from cwa_daemon.control.outcomes import Outcomes
from cwa_daemon.control.store import Store
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.pipe.messages import LoadAgain
from cwa_daemon.protocol import HIGHEST_PRIORITY, TERMINAL_STATES, JobOptions, JobState, JobView
from cwa_engine.base.errors import (
    Cancelled,
    CwaError,
    InvalidInput,
    OutputTaken,
    QueueFull,
)
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.output import claim_output
from cwa_engine.records.run_id import new_run_id
from cwa_engine.spec import RunSpec

log = logging.getLogger(__name__)


class Jobs:
    """What can be asked of jobs. `on_event(run_id, event)` is called after an event of that job was stored.

    `ledger` writes down what happens, `dispatcher` runs the jobs, `copies` brings the files of those that are done to where
    the user wants them.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        on_event: OnEvent,
        troubles: Troubles | None = None,
        make_lane: Callable[..., Lane] = Lane,
    ) -> None:
        self._store = store
        self._settings = settings
        self.ledger = Ledger(store, settings.runs, on_event, self._moved, self._queued_on)
        self.outcomes = Outcomes(store, self.ledger, settings.runs)
        self.dispatcher = Dispatcher(
            store, settings, self.ledger, self.outcomes, troubles or Troubles(), self.load_again, make_lane
        )
        self.copies = Copies(lambda run_id, text: self.ledger.note(run_id, text, "warning"), self.ledger.copied)

    def recover(self) -> None:
        """After a start: copy what is not copied yet, and begin the lanes."""
        for job in self._store.to_be_copied():
            self._copy(job)
        self.dispatcher.recover()

    def tick(self) -> None:
        """What is looked after once a second: workers that hang, and states that a full disk did not take."""
        self.dispatcher.tick()
        if self._store.disk_full:
            self._store.restore_ballast()
        if self.ledger.catch_up():
            self.dispatcher.wake_all()

    async def stop(self) -> None:
        """End all lanes and copies; what runs is queued again. What is queued or not copied waits for the next start."""
        await asyncio.gather(self.dispatcher.stop(), self.copies.stop())

    def find(self, part: str) -> Job:
        """The job that a user means, see `find_job`."""
        return find_job(self._store, part)

    def view(self, job: Job) -> JobView:
        progress, last_seq = self.ledger.progress.get(job.run_id), self._store.last_seq(job.run_id)
        return view_of(job, progress, last_seq, self._settings.runs, self.dispatcher.waits_for(job))

    # queued

    def submit(
        self,
        kind: str,
        spec: JsonMap,
        device: str,
        client_key: str,
        command: str,
        access: JsonMap,
        options: JobOptions,
        retry_of: str | None = None,
        owner: str = "",
    ) -> str:
        """Queue a job and give its run id; the same client key again gives the same run id. `device` is what was asked for."""
        if known := self._store.job_by_client_key(client_key):
            return known.run_id
        self.dispatcher.names.check(device)
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
            device=self.dispatcher.names.kept_as(device),
            client_key=client_key,
            retry_of=retry_of,
            created=time.time(),
            priority=options.priority,
            after_run=after,
            options={**options.model_dump(exclude={"priority", "after"}), "access": reach},
            owner=owner,
        )
        if token:
            self.dispatcher.keep_token(run_id, token)
        self.ledger.record(run_id, {"kind": "state", "state": JobState.QUEUED, "error": None})
        job = self.find(run_id)
        self.dispatcher.wake_for(job)
        if waits_for := self.dispatcher.waits_for(job):
            self.ledger.note(run_id, f"waiting: {waits_for}")
        return run_id

    def load_again(self, device: str, model: LoadAgain, reason: str) -> None:
        """Queue the loading of a pinned model that was lost with its worker: first of all, for its runs count on it."""
        device = CPU if self.dispatcher.is_gone(device) else device
        spec = RunSpec(**{**model.spec, "device": device})
        options = JobOptions(pin=True, priority=HIGHEST_PRIORITY)
        command = f"cwtool load {spec.model} --pin"
        fields = spec.model_dump(mode="json")
        try:
            run_id = self.submit("load", fields, device, secrets.token_hex(16), command, model.access, options)
        except CwaError as error:
            log.error("%s is pinned and cannot be loaded again: %s", spec.model, error.message)
        else:
            self.ledger.note(run_id, f"loaded again, for it is pinned: {reason}", "warning")

    def _check_nobody_writes(self, spec: JsonMap) -> None:
        """Refuse an output folder that a job of another spec is going to fill."""
        for job in self._store.unfinished_with_output(spec["output"]):
            if job.spec != spec:
                raise OutputTaken(
                    f"{job.run_id}, which is {job.state}, is to write its files to {spec['output']}",
                    hint="give --output another folder, or --force to replace them",
                )

    def _predecessor(self, part: str) -> str:
        before = self.find(part)
        if before.state in TERMINAL_STATES - {JobState.DONE}:
            raise InvalidInput(f"{before.run_id} is {before.state}: nothing can wait for it to be done")
        return before.run_id

    def retry(self, run_id: str, client_key: str, access: JsonMap, owner: str = "") -> str:
        """Queue the same spec again as a new job. Raises OutputTaken where its output folder holds something else by now."""
        job = self.find(run_id)
        kind, spec, options = job.kind, job.spec, job.run_options()
        if spec["output"]:
            claim_output(Path(spec["output"]), RunSpec.model_validate(spec), options.force)
        return self.submit(kind, spec, job.asked, client_key, job.command, access, options, job.run_id, owner)

    # changed by users

    def cancel(self, run_id: str) -> str:
        """Cancel a waiting or running job, or the copy of a run that is done; gives its state right after."""
        job = self.find(run_id)
        if job.state in (JobState.QUEUED, JobState.PAUSED):
            self.ledger.move(job.run_id, JobState.CANCELLED, Cancelled(f"cancelled while it was {job.state}"))
        elif job.state is JobState.RUNNING:
            self.dispatcher.cancel(job)
        else:
            self.copies.cancel(job.run_id)
        return self.find(job.run_id).state.value

    def pause(self, part: str | None, owner: str | None = None) -> list[str]:
        """Keep a queued job, or all of them, or all of an owner, from being begun; gives their run ids."""
        return self._shift(part, JobState.QUEUED, JobState.PAUSED, owner)

    def resume(self, part: str | None, owner: str | None = None) -> list[str]:
        """Let a paused job, or all of them, or all of an owner, take its turn again; gives their run ids."""
        resumed = self._shift(part, JobState.PAUSED, JobState.QUEUED, owner)
        self.dispatcher.wake_all()
        return resumed

    def _shift(self, part: str | None, before: JobState, after: JobState, owner: str | None) -> list[str]:
        jobs = [self.find(part)] if part else self._store.jobs(limit=self._settings.max_queue, state=before)
        jobs = [job for job in jobs if owner is None or job.owner == owner]
        for job in jobs:
            if job.state != before:
                raise InvalidInput(
                    f"{job.run_id} is {job.state}, not {before}",
                    hint="what runs can be cancelled and retried" if job.state == JobState.RUNNING else "",
                )
            self.ledger.move(job.run_id, after)
        return [job.run_id for job in jobs]

    # what follows a change

    def _queued_on(self, job: Job) -> str:
        return self.dispatcher.queued_on(job)

    def _moved(self, job: Job, state: JobState) -> None:
        """What follows when a job, here as it was before, has come to another state."""
        if job.state is JobState.RUNNING:
            self._remove_scratch(job.run_id)
        if state is JobState.DONE and job.output:
            self._copy(job)
        if state in TERMINAL_STATES:
            self.dispatcher.forget(job.run_id)
            self._release(job.run_id, state)

    def _release(self, run_id: str, state: JobState) -> None:
        """Start the jobs that waited for this one, or cancel them if it was not done."""
        for job in self._store.waiting_for(run_id):
            if state is JobState.DONE:
                self.dispatcher.wake_for(job)
            else:
                reason = f"cancelled: {run_id}, which it was to follow, is {state}"
                self.ledger.move(
                    job.run_id, JobState.CANCELLED, Cancelled(reason, hint="submit it again without --after")
                )

    def _remove_scratch(self, run_id: str) -> None:
        """Remove what a worker that was killed while it saved has left half written."""
        for path in self._settings.runs.glob(f".{run_id}.*"):
            shutil.rmtree(path, ignore_errors=True)  # at the latest the next start does

    def _copy(self, job: Job) -> None:
        if job.output:
            folder = self._settings.runs / job.run_id
            self.copies.begin(job.run_id, folder, job.output, job.run_options().force)
