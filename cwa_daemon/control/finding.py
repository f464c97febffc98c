"""Finding a job by what a user writes of its run id, and showing it."""

from __future__ import annotations

from pathlib import Path

from cwa_daemon.control.job import Job
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import Headline, JobState, JobView, StageProgress
from cwa_engine.base.errors import InvalidInput, NotFound, did_you_mean


def find_job(store: Store, part: str) -> Job:
    """The job with this run id, or the only one that begins or ends so; "latest" is the last run submitted.

    What was only loaded or planned is found by its run id alone.

    Raises NotFound and, where it may be several, InvalidInput.
    """
    if part == "latest":
        latest = store.jobs(limit=1, kind="run")
        if latest:
            return latest[0]
        raise NotFound("there is no run yet", hint="`cwtool run --model smollm2-135m` makes one")
    if exact := store.job(part):
        return exact
    matches = store.jobs_like(part) if part else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        some = ", ".join(job.run_id for job in matches[:3])
        raise InvalidInput(f"'{part}' may be {len(matches)} runs: {some}", hint="give more of the run id")
    near = did_you_mean(part, [job.run_id for job in store.jobs(limit=200)])
    raise NotFound(f"there is no run '{part}'", hint=near or "`cwtool jobs` lists all")


def view_of(job: Job, progress: StageProgress | None, last_seq: int, runs: Path, waits_for: str) -> JobView:
    """A job as clients see it; `runs` is where run folders are, `waits_for` a sentence."""
    has_files = job.kind == "run" and job.state is JobState.DONE
    return JobView(
        run_id=job.run_id,
        kind=job.kind,
        state=job.state.value,
        model=job.model,
        spec=job.spec,
        device=job.device,
        created=job.created,
        started=job.started,
        finished=job.finished,
        error=job.error,
        retry_of=job.retry_of,
        priority=job.priority,
        after=job.after_run,
        progress=progress,
        folder=str(runs / job.run_id) if has_files else None,
        last_seq=last_seq,
        copy_error=job.copy_error,
        deaths=job.deaths,
        owner=job.owner,
        worked_s=job.worked_s,
        running_since=job.started if job.state is JobState.RUNNING else None,
        headline=Headline.model_validate(job.headline) if job.headline else None,
        waits_for=waits_for,
        tags=job.tags,
        note=job.note,
    )
