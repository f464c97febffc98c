"""How long the stages of a run took, and how long the one under way may still take. No Textual in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cwa_engine.base.events import Progress, StageFinished, StageStarted
from cwa_tui.events import JobEvent, StateChanged

LEAST_SECONDS = 3.0  # of measured work; less tells nothing of the rest
LEAST_STEPS = 2


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage. Moments are seconds since the epoch by the daemon's clock."""

    name: str
    started: float
    seconds: float | None = None  # None while it is under way
    progress: Progress | None = None  # the last one
    first: tuple[float, int] | None = None  # moment and steps done of its first progress
    last: tuple[float, int] | None = None

    def elapsed(self, now: float) -> float:
        """Seconds that it took, or takes so far."""
        return max(0.0, now - self.started) if self.seconds is None else self.seconds

    def left(self, now: float) -> float | None:
        """Seconds it will still take if it goes on as fast as so far; None where too little is known of that."""
        if self.seconds is not None or not (self.progress and self.first and self.last):
            return None
        (began, at_first), (moment, done) = self.first, self.last
        if done - at_first < LEAST_STEPS or moment - began < LEAST_SECONDS:
            return None
        rest = (moment - began) / (done - at_first) * (self.progress.total - done)
        return max(0.0, rest - (now - moment))


Stages = Mapping[str, StageTime]  # in the order in which they began


def stages_after(stages: Stages, event: JobEvent) -> Stages:
    """The stages with one event more; a run that begins again has none."""
    match event.what:
        case StateChanged(state="running" | "queued"):
            return {}
        case StageStarted(name):
            rest = {known: stage for known, stage in stages.items() if known != name}
            return {**rest, name: StageTime(name, event.time)}
        case StageFinished(name, seconds):
            return {**stages, name: replace(stages.get(name, StageTime(name, event.time)), seconds=seconds)}
        case Progress() as progress if progress.stage in stages:
            stage, at = stages[progress.stage], (event.time, progress.done)
            other = stage.progress is None or progress.total != stage.progress.total
            begins = other or stage.first is None or progress.done < stage.first[1]
            return {
                **stages,
                progress.stage: replace(stage, progress=progress, first=at if begins else stage.first, last=at),
            }
    return stages
