"""What becomes of a job whose worker or daemon has ended under it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from cwa_daemon.control.deaths import START, Cause, Death, why_not_again
from cwa_daemon.control.job import Job
from cwa_daemon.control.lane_names import AUTO, CPU
from cwa_daemon.control.ledger import Ledger
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import JobState
from cwa_engine.base.errors import CwaError, StateNotWritten, WorkerDied
from cwa_engine.records.checksums import saved_at


class Outcomes:
    """Decides by the run folder, and by the deaths that a job has met before."""

    def __init__(self, store: Store, ledger: Ledger, runs: Path) -> None:
        self._store = store
        self._ledger = ledger
        self._runs = runs

    def is_saved(self, job: Job) -> bool:
        """Whether a run is done, whatever became of its worker: its folder appears whole, by a renaming."""
        return job.kind == "run" and (self._runs / job.run_id).is_dir()

    def after_death(self, job: Job, death: Death) -> tuple[JobState, CwaError | None]:
        """The state that a job goes to after a death of its worker, and why; the death is kept with the job."""
        run_id = job.run_id
        if self.is_saved(job):
            self._ledger.note(run_id, f"{death.reason}, just after this was saved; its files are whole")
            return JobState.DONE, None
        now = self._store.job(run_id)
        deaths = [*(now or job).deaths, death.row()]
        with contextlib.suppress(StateNotWritten):  # on a full disk it may be run once more
            self._store.update_job(run_id, deaths=deaths)
        refusal = why_not_again(deaths, job.run_options().retries)
        if refusal is None:
            self._ledger.note(run_id, f"{death.reason}; queued again", "warning")
            return JobState.QUEUED, None
        return JobState.FAILED, WorkerDied("; ".join(filter(None, (death.reason, refusal))), death.hint)

    def taken_up(self, run_id: str, lane: str) -> Job | None:
        """The job that a worker of an earlier daemon is at; None where it is not to go on with it."""
        job = self._store.job(run_id)
        if job is None:
            return None
        if job.state is JobState.QUEUED and job.lane in (
            lane,
            AUTO,
            CPU,
        ):  # that it had begun did not fit on the full disk
            device = job.device if job.lane == lane else lane
            self._ledger.move(run_id, JobState.RUNNING, device=device)
            job = replace(job, device=device)
        elif job.state is not JobState.RUNNING or job.lane != lane:
            return None
        self._ledger.note(run_id, "the daemon was started anew, and the worker has gone on meanwhile")
        return job

    def settle(self, lane: str, running: str | None) -> None:
        """End or queue again the jobs of a lane that ran when the last daemon ended, but for the one that goes on."""
        for job in self._store.jobs(limit=10_000, state=JobState.RUNNING):
            if job.lane == lane and job.run_id != running:
                stage = self._store.last_stage(job.run_id) or START
                death = Death("the daemon ended while this ran", Cause.OTHERS, stage=stage, time=self._last_sign(job))
                self._ledger.move(job.run_id, *self.after_death(job, death), death.time)

    def _last_sign(self, job: Job) -> float:
        """When a job whose worker is gone was last heard of: when its files were whole, or what it said last."""
        saved = saved_at(self._runs / job.run_id) if self.is_saved(job) else None
        return max(job.started or 0.0, saved or self._store.last_time(job.run_id) or 0.0)

    def last_written(self, run_id: str) -> int:
        """The number of the last report of its worker that the store has."""
        return self._store.last_number(run_id)
