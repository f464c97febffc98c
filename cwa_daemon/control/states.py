"""Which state of a job may follow which."""

from __future__ import annotations

from cwa_daemon.protocol import TERMINAL_STATES, JobState

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
assert {state for state, moves in MOVES.items() if not moves} == TERMINAL_STATES
