"""What the TUI knows: jobs, warm models, devices, and runs folded from their events. No Textual in it.

Views read the store, the session writes it; `version` grows with each change, so a view knows when to look again.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cwa_daemon.protocol import TERMINAL_STATES, JobView, StageProgress, StatusView
from cwa_engine.base.errors import CwaError
from cwa_engine.base.events import PREVIEW_ROWS, describe

Row = Mapping[str, Any]  # a row as it came over the wire, fields as in `cwa_engine.rows`

MOST_LOG_LINES = 500
MOST_RUNS = 20  # runs kept folded, so that going back to one shows it at once


class Link(StrEnum):
    """Whether the daemon is there."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something a run said, at `time` seconds since the epoch; `level` is "info", "warning" or "error"."""

    time: float
    text: str
    level: str


@dataclass(frozen=True, slots=True)
class TopTable:
    """The head of one metric's ranking; `seen` is how far scoring was when a partial one was made."""

    weights: tuple[Row, ...]
    partial: bool
    seen: StageProgress | None = None


@dataclass
class RunState:
    """One job as its events tell it. Folding the same event twice changes nothing, so a replay is harmless."""

    run_id: str
    state: str = ""  # empty until the first event
    stage: str | None = None
    progress: StageProgress | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # finished stages
    baseline: Row | None = None
    rankings: dict[str, TopTable] = field(default_factory=dict)  # by metric
    damage: dict[tuple[Any, ...], Row] = field(default_factory=dict)  # by case, in the order measured
    lines: deque[LogLine] = field(default_factory=lambda: deque(maxlen=MOST_LOG_LINES))
    said: int = 0  # log lines so far, also those that were dropped again
    error: Row | None = None
    last_seq: int = 0

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES

    def apply(self, event: Row) -> None:
        """Fold one event in. Kinds this version does not know are skipped."""
        if event["seq"] <= self.last_seq:
            return
        self.last_seq = event["seq"]
        match event["kind"]:
            case "state":
                self.state, self.error = event["state"], event["error"]
                if not self.ended:  # of a job whose worker died, all begins anew
                    self.stage = self.progress = None
            case "copied":
                self.error = event["error"]
            case "stage_started":
                self.stage, self.progress = event["stage"], None
            case "stage_finished":
                self.seconds[event["stage"]] = event["seconds"]
            case "progress":
                self.progress = StageProgress.of(event)
            case "baseline":
                self.baseline = event["baseline"]
            case "topk":
                seen = self.progress if event["partial"] else None
                self.rankings[event["metric"]] = TopTable(tuple(event["weights"]), event["partial"], seen)
            case "damage":
                point = event["point"]
                case = tuple(point[name] for name in ("metric", "k", "perturbation", "selection", "seed"))
                self.damage[case] = point
        if line := describe(event):
            self.lines.append(LogLine(event["time"], line, _level(event)))
            self.said += 1

    def complete(self, metric: str, weights: Sequence[Row]) -> None:
        """Put more of a finished ranking in place of the head that came as an event."""
        self.rankings[metric] = TopTable(tuple(weights), partial=False)

    def cut_rankings(self) -> list[str]:
        """Metrics of which the run's files may hold more than has come as events."""
        if self.state != "done":
            return []
        return [metric for metric, table in self.rankings.items() if len(table.weights) == PREVIEW_ROWS]


class Store:
    """Everything on screen, as plain data."""

    def __init__(self) -> None:
        self.version = 0
        self.link = Link.CONNECTING
        self.trouble: CwaError | None = None  # why the daemon cannot be reached
        self.jobs: list[JobView] = []  # latest first
        self.status: StatusView | None = None
        self.selected: str | None = None  # run id
        self._runs: OrderedDict[str, RunState] = OrderedDict()

    @property
    def job(self) -> JobView | None:
        """The selected job."""
        return next((job for job in self.jobs if job.run_id == self.selected), None)

    @property
    def run(self) -> RunState | None:
        """The selected job as its events tell it."""
        return self.run_state(self.selected) if self.selected else None

    def run_state(self, run_id: str) -> RunState:
        """The folded run, a fresh one where it was never looked at; the longest unseen is forgotten."""
        run = self._runs.pop(run_id, None) or RunState(run_id)
        self._runs[run_id] = run
        if len(self._runs) > MOST_RUNS:
            self._runs.popitem(last=False)
        return run

    def touch(self) -> None:
        self.version += 1

    def update(self, jobs: Sequence[JobView], status: StatusView) -> None:
        """Take what the daemon answered. A selected run stays selected until it is listed no more."""
        was_listed = self.job is not None  # a run submitted a moment ago is not, and is selected all the same
        self.link, self.trouble = Link.CONNECTED, None
        self.jobs, self.status = list(jobs), status
        if self.selected is None or (was_listed and self.job is None):
            self.selected = self.jobs[0].run_id if self.jobs else None
        self.touch()

    def lose(self, error: CwaError) -> None:
        """The daemon cannot be reached; what is known stays on screen."""
        self.link, self.trouble = Link.LOST, error
        self.touch()

    def select(self, run_id: str) -> None:
        self.selected = run_id
        self.touch()


def _level(event: Row) -> str:
    if event["kind"] in ("state", "copied") and event["error"]:
        return "error" if event.get("state") == "failed" else "warning"
    return str(event["level"]) if event["kind"] == "note" else "info"
