"""How long the stages of a run took, and how long the one under way may still take. No Textual in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cwa_engine.base.events import Progress, StageFinished, StageStarted
from cwa_tui.store.events import JobEvent, StateChanged
from cwa_tui.store.stage_pace import StagePace, pace_after


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage. Moments are seconds since the epoch by the daemon's clock."""

    name: str
    started: float
    seconds: float | None = None  # None while it is under way
    progress: Progress | None = None  # the last one
    pace: StagePace | None = None

    def elapsed(self, now: float) -> float:
        """Seconds that it took, or takes so far."""
        return max(0.0, now - self.started) if self.seconds is None else self.seconds

    def left(self, now: float) -> float | None:
        """Seconds it will still take if it goes on as it went; None where too little is known of that."""
        return self.pace.seconds_left(now) if self.pace and self.seconds is None else None


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
            stage = stages[progress.stage]
            pace = pace_after(stage.pace, progress, event.time)
            return {**stages, progress.stage: replace(stage, progress=progress, pace=pace)}
    return stages
