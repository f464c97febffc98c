"""A run as its events tell it: one frozen slice for each pane, and the functions from an event to the next slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cwa_daemon.protocol import TERMINAL_STATES
from cwa_engine.base.errors import CwaError
from cwa_engine.base.events import (
    BaselineMeasured,
    CardMade,
    DamageMeasured,
    Generated,
    Inspected,
    Note,
    Progress,
    PromptAnswered,
    StageStarted,
    TopK,
)
from cwa_engine.prompt_rows import PromptAnswer
from cwa_engine.rows import Baseline, DamagePoint, TopWeight, WeightFacts
from cwa_engine.weight_rows import WeightCard
from cwa_tui.store.events import JobEvent, OutputCopied, StateChanged
from cwa_tui.store.stage_times import Stages, stages_after

MOST_LOG_LINES = 500

DamageCase = tuple[str, int, str, str, int | None]  # metric, k, perturbation, selection, seed


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far the run is, and what the intact model is worth."""

    state: str = ""  # empty until the first event
    stage: str | None = None
    progress: Progress | None = None
    baseline: Baseline | None = None
    error: CwaError | None = None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES


@dataclass(frozen=True, slots=True)
class RankingHead:
    """The head of one metric's ranking; `seen` is how far scoring was when a partial one was made."""

    weights: tuple[TopWeight, ...]
    partial: bool
    seen: Progress | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a run's log, at `time` seconds since the epoch; `level` is "info", "warning" or "error"."""

    time: float
    text: str
    level: str


@dataclass(frozen=True, slots=True)
class LogTail:
    """The last lines of a run's log; `written` counts all lines so far."""

    lines: tuple[LogLine, ...] = ()
    written: int = 0


@dataclass(frozen=True, slots=True)
class FollowedRun:
    """One job as its events tell it."""

    run_id: str
    last_seq: int = 0
    status: RunStatus = RunStatus()
    rankings: Mapping[str, RankingHead] = field(default_factory=dict)  # by metric
    damage: Mapping[DamageCase, DamagePoint] = field(default_factory=dict)  # in the order measured
    log: LogTail = LogTail()
    stages: Stages = field(default_factory=dict)
    facts: WeightFacts | None = None  # of a job that looks at a weight
    card: WeightCard | None = None  # of a job that examines one
    texts: Generated | None = None  # so far, of a job that answers a prompt
    answer: PromptAnswer | None = None


def run_after(run: FollowedRun, event: JobEvent) -> FollowedRun:
    """The run with one event more. An event that it has already changes nothing, so a replay is harmless."""
    if event.seq <= run.last_seq:
        return run
    if isinstance(event.what, StateChanged) and event.what.state == "queued" and run.last_seq:
        # its worker or daemon died: what it has measured is measured anew
        return FollowedRun(run.run_id, event.seq, RunStatus(event.what.state), log=log_after(run.log, event))
    return FollowedRun(
        run.run_id,
        event.seq,
        status_after(run.status, event),
        rankings_after(run.rankings, event, run.status.progress),
        damage_after(run.damage, event),
        log_after(run.log, event),
        stages_after(run.stages, event),
        event.what.facts if isinstance(event.what, Inspected) else run.facts,
        event.what.card if isinstance(event.what, CardMade) else run.card,
        event.what if isinstance(event.what, Generated) else run.texts,
        event.what.answer if isinstance(event.what, PromptAnswered) else run.answer,
    )


def status_after(status: RunStatus, event: JobEvent) -> RunStatus:
    match event.what:
        case StateChanged(state, error):
            changed = replace(status, state=state, error=error)
            # the job of a worker that died starts again
            return changed if changed.ended else replace(changed, stage=None, progress=None)
        case OutputCopied(error=error):
            return replace(status, error=error)
        case StageStarted(stage):
            return replace(status, stage=stage, progress=None)
        case Progress() as progress:
            return replace(status, progress=progress)
        case BaselineMeasured(baseline):
            return replace(status, baseline=baseline)
    return status


def rankings_after(
    rankings: Mapping[str, RankingHead], event: JobEvent, progress: Progress | None
) -> Mapping[str, RankingHead]:
    if not isinstance(event.what, TopK):
        return rankings
    top = event.what
    return {**rankings, top.metric: RankingHead(top.weights, top.partial, progress if top.partial else None)}


def damage_after(damage: Mapping[DamageCase, DamagePoint], event: JobEvent) -> Mapping[DamageCase, DamagePoint]:
    if not isinstance(event.what, DamageMeasured):
        return damage
    point = event.what.point
    return {**damage, (point.metric, point.k, point.perturbation, point.selection, point.seed): point}


def log_after(log: LogTail, event: JobEvent) -> LogTail:
    if not event.line:
        return log
    lines = (*log.lines, LogLine(event.time, event.line, _level(event)))
    return LogTail(lines[-MOST_LOG_LINES:], log.written + 1)


def _level(event: JobEvent) -> str:
    match event.what:
        case Note(level=level):
            return level
        case StateChanged(state="failed", error=CwaError()):
            return "error"
    return "warning" if event.error else "info"
