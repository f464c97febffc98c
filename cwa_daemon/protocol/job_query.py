"""Which jobs a client asks for, and what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from cwa_daemon.protocol.states import JobState
from cwa_daemon.protocol.views import JobView
from cwa_engine.base.errors import InvalidInput, did_you_mean

JobKind = Literal["run", "load", "plan", "pull", "inspect", "weight", "prompt"]
JobSort = Literal["created", "finished", "model", "state", "took", "ratio"]
KINDS: tuple[str, ...] = get_args(JobKind)
SORTS: tuple[str, ...] = get_args(JobSort)
STATES: tuple[str, ...] = tuple(state.value for state in JobState)


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs, in which order, and which part of them. What is left as it is filters nothing.

    `text` is words, of which each is somewhere in the run id, the model, the metrics, the state, the error message, the
    tags or the note.
    Jobs that have nothing to be sorted by come last; of equal ones the latest come first.
    """

    limit: int = 50
    offset: int = 0
    states: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    model: str | None = None  # a part of the model's name
    text: str | None = None
    since: float | None = None  # created then or later; seconds since the epoch
    sort: str = "created"  # one of SORTS
    descending: bool = True
    tag: str | None = None  # one that it has
    metric: str | None = None  # one that it ranks by
    ratio_above: float | None = None  # of its headline: damaged over intact perplexity


@dataclass(frozen=True, slots=True)
class JobPage:
    """A part of the jobs that a query finds, and how many it finds in all."""

    jobs: Sequence[JobView]
    total: int


def check_states(states: Iterable[str]) -> None:
    """Raises InvalidInput for a state that no job ever has."""
    for state in states:
        if state not in STATES:
            raise _unknown(f"no job is ever '{state}'", state, STATES, "a job is")


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises InvalidInput for a kind of job that there is not."""
    for kind in kinds:
        if kind not in KINDS:
            raise _unknown(f"there are no jobs of kind '{kind}'", kind, KINDS, "a job is a")


def check_sort(sort: str) -> None:
    """Raises InvalidInput for what jobs cannot be sorted by."""
    if sort not in SORTS:
        raise _unknown(f"jobs cannot be sorted by '{sort}'", sort, SORTS, "they are sorted by")


def _unknown(message: str, given: str, known: Sequence[str], introduction: str) -> InvalidInput:
    listed = f"{introduction} {', '.join(known[:-1])} or {known[-1]}"
    return InvalidInput(message, hint=f"{did_you_mean(given, known)} {listed}".strip())
