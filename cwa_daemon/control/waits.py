"""What a job that is not under way waits for, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_daemon.control.job import Job
from cwa_daemon.protocol import StageProgress
from cwa_engine.records.run_id import short_id

_DOES = {
    "run": "runs on {device}",
    "load": "loads {model} on {device}",
    "plan": "is being planned",
    "pull": "downloads {model}",
    "inspect": "looks at weights of {model} on {device}",
    "weight": "examines a weight of {model} on {device}",
    "prompt": "answers a prompt by {model} on {device}",
}


def for_running(job: Job, device: str, progress: StageProgress | None, before: int) -> str:
    """`job` runs; so many others are due before the one that waits."""
    does = _DOES.get(job.kind, "is under way on {device}").format(device=device, model=job.model)
    far = f" ({_how_far(progress)})" if progress else ""
    more = f", and {before} more {'is' if before == 1 else 'are'} due before it" if before else ""
    return f"{short_id(job.run_id)} {does}{far}{more}"


def _how_far(at: StageProgress) -> str:
    """`score 3/40`, and of bytes `load 64%`."""
    if at.unit == "byte" and at.total:
        return f"{at.stage} {at.done / at.total:.0%}"
    return f"{at.stage} {at.done}/{at.total}"


def for_lanes(lanes: Sequence[str], before: int) -> str:
    """What is in the way on each lane that may run a job; so many others are due before it."""
    more = f"; {before} more {'is' if before == 1 else 'are'} due before it" if before else ""
    return f"{'; '.join(dict.fromkeys(lanes))}{more}"


def for_its_model(device: str) -> str:
    return f"{device}, which has its model and is expected to be free before it could be loaded elsewhere"


def for_room(device: str) -> str:
    return f"it does not fit on {device}"


def for_queued(before: Sequence[str]) -> str:
    """Nothing runs, but these are due before."""
    return f"{short_id(before[0])}, which is due before it" if before else ""


def for_predecessor(run_id: str) -> str:
    return f"{short_id(run_id)} to be done"
