"""What a full disk does not take: states, events and outcomes of copies wait in memory, in their order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cwa_daemon.protocol import JobState
from cwa_engine.base.errors import CwaError
from cwa_engine.base.plain import JsonMap

MOST_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class Move:
    """A job that goes to another state at a time, in seconds since the epoch, and why; and to another device, where it does."""

    run_id: str
    state: JobState
    error: CwaError | None
    time: float
    device: str | None = None


@dataclass
class Unwritten:
    """What is to be written when there is room again. Of events the latest are kept."""

    events: deque[tuple[str, JsonMap]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))
    moves: list[Move] = field(default_factory=list)
    copies: dict[str, CwaError | None] = field(default_factory=dict)

    @property
    def jobs(self) -> set[str]:
        """The jobs whose state in the database is not the one they have."""
        return {move.run_id for move in self.moves}

    def state_of(self, run_id: str) -> JobState | None:
        """The state that a job has come to without its being written down; None where the database has it."""
        states = [move.state for move in self.moves if move.run_id == run_id]
        return states[-1] if states else None
