"""Which of the queued jobs of a lane runs next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

PATIENCE = 4  # later jobs that may go before one, because their model is warm and its own is not


class Queued(Protocol):
    @property
    def priority(self) -> int: ...
    @property
    def passed_over(self) -> int: ...


J = TypeVar("J", bound=Queued)


def choose_next(
    due: Sequence[J], is_warm: Callable[[J], bool], is_elsewhere: Callable[[J], bool] = lambda job: False
) -> J | None:
    """The job to run now; `due` is ordered by priority and age.

    It is the first, unless a later one of the same priority finds its model warm here; or unless the model of the first is
    warm or being loaded on another lane (`is_elsewhere`), and that of a later one is not. That spares a load, and nobody
    starves: whoever is first is passed over at most `PATIENCE` times.
    """
    if not due:
        return None
    first = due[0]
    if is_warm(first) or first.passed_over >= PATIENCE:
        return first
    peers = [job for job in due if job.priority == first.priority]
    warm = next((job for job in peers if is_warm(job)), None)
    return warm or next((job for job in peers if not is_elsewhere(job)), first)
