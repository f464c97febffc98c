"""The states of a job, and the moves between them."""

from __future__ import annotations

from enum import StrEnum

from cwa_daemon.protocol import STATES, TERMINAL_STATES


class JobState(StrEnum):
    QUEUED = "queued"
    PAUSED = "paused"  # keeps its place in the queue, but is not begun
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # by the end of a daemon; today such a job is queued again


MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.RUNNING: frozenset(
        {JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED, JobState.QUEUED}
    ),  # back to queued: it waits for memory, or its worker died
    JobState.DONE: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.INTERRUPTED: frozenset(),
}
assert tuple(JobState) == STATES
assert {state for state, moves in MOVES.items() if not moves} == TERMINAL_STATES
