"""How long a stage still takes, by how fast it went since it was first seen. No Textual in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cwa_daemon.protocol import StageProgress
from cwa_engine.base.events import Progress

LEAST_S = 2.0  # a stage is watched at least so long before an end is foretold


@dataclass(frozen=True, slots=True)
class StagePace:
    """Where a stage was when it was first seen, and where it was at its latest step; moments in seconds since the epoch."""

    stage: str
    began_at: float
    began_done: int
    latest_at: float
    latest_done: int
    total: int

    def seconds_left(self, now: float) -> float | None:
        """Until the stage ends, if it goes on as it went; None where too little of it was seen."""
        steps, watched_s = self.latest_done - self.began_done, self.latest_at - self.began_at
        if steps < 1 or watched_s < LEAST_S:
            return None
        at_the_latest_step = (self.total - self.latest_done) * watched_s / steps
        return max(0.0, at_the_latest_step - max(0.0, now - self.latest_at))


def pace_after(pace: StagePace | None, at: StageProgress | Progress, now: float) -> StagePace:
    """The pace with what is known now. Another stage, or one that began again, is watched anew."""
    if pace is None or pace.stage != at.stage or pace.total != at.total or at.done < pace.latest_done:
        return StagePace(at.stage, now, at.done, now, at.done, at.total)
    return pace if at.done == pace.latest_done else replace(pace, latest_at=now, latest_done=at.done)
