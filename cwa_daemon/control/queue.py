"""In which line a job waits, and which of the queued jobs runs next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cwa_daemon.pipe.place import PLANS

PATIENCE = 4  # later jobs that may go before one, because their model is warm and its own is not

Job = dict[str, Any]


def lane_of(job: Job) -> str:
    """Where a job runs, one after the other: on its device, or where plans are made."""
    return PLANS if job["kind"] == "plan" else str(job["device"])


def choose_next(due: Sequence[Job], is_warm: Callable[[Job], bool]) -> Job | None:
    """The job to run now; `due` is ordered by priority and age.

    It is the first, unless a later one of the same priority finds its model warm. That spares a load, and nobody starves:
    whoever is first is passed over at most `PATIENCE` times.
    """
    if not due:
        return None
    first = due[0]
    if is_warm(first) or first["passed_over"] >= PATIENCE:
        return first
    peers = (job for job in due[1:] if job["priority"] == first["priority"])
    return next((job for job in peers if is_warm(job)), first)
