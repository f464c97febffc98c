"""The events of an analysis, and the line that a log shows for each.

An analysis calls `emit(event)`. A daemon turns events into wire maps with `to_dict`, numbers them and stores them.
A run is cancelled here too: an `emit` that raises `errors.Cancelled` ends the analysis between two batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cwa_engine.base.plain import JsonMap

if TYPE_CHECKING:  # clients get events as maps, so they need not import the row types
    from cwa_engine.prompt_rows import PromptAnswer
    from cwa_engine.rows import Baseline, DamagePoint, ModelOnDisk, Plan, TopWeight, Verdict, WeightFacts
    from cwa_engine.weight_rows import WeightCard

PREVIEW_ROWS = 50  # rows of a ranking that travel in an event; the whole ranking is in the run's files


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; `kind` names it on the wire."""

    kind: ClassVar[str]


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    kind: ClassVar[str] = "stage_started"
    stage: str


@dataclass(frozen=True, slots=True)
class StageFinished(Event):
    kind: ClassVar[str] = "stage_finished"
    stage: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """`done` of `total` units of a stage, 0 of n when the stage's work begins."""

    kind: ClassVar[str] = "progress"
    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Note(Event):
    """Something the user should know: `level` is "info" or "warning"."""

    kind: ClassVar[str] = "note"
    text: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class BaselineMeasured(Event):
    kind: ClassVar[str] = "baseline"
    baseline: Baseline


@dataclass(frozen=True, slots=True)
class TopK(Event):
    """The head of a ranking; `partial` while only some of the scoring texts have been seen."""

    kind: ClassVar[str] = "topk"
    metric: str
    partial: bool
    weights: tuple[TopWeight, ...]


@dataclass(frozen=True, slots=True)
class DamageMeasured(Event):
    kind: ClassVar[str] = "damage"
    point: DamagePoint


@dataclass(frozen=True, slots=True)
class VerdictReached(Event):
    kind: ClassVar[str] = "verdict"
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Planned(Event):
    kind: ClassVar[str] = "plan"
    plan: Plan


@dataclass(frozen=True, slots=True)
class Pulled(Event):
    kind: ClassVar[str] = "pulled"
    model: ModelOnDisk


@dataclass(frozen=True, slots=True)
class Inspected(Event):
    kind: ClassVar[str] = "inspected"
    facts: WeightFacts


@dataclass(frozen=True, slots=True)
class CardMade(Event):
    kind: ClassVar[str] = "card"
    card: WeightCard


@dataclass(frozen=True, slots=True)
class Generated(Event):
    """The texts that both models have generated so far; `damaged` is None until the intact one is done."""

    kind: ClassVar[str] = "generated"
    intact: str
    damaged: str | None


@dataclass(frozen=True, slots=True)
class PromptAnswered(Event):
    kind: ClassVar[str] = "answered"
    answer: PromptAnswer


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `emit` that drops every event."""


def to_dict(event: Event) -> JsonMap:
    """A map of plain values with the event's kind."""
    from cwa_engine.rows import to_plain

    return {"kind": event.kind, **to_plain(event)}


def describe(event: Mapping[str, Any]) -> str | None:
    """One line of a log for an event map; None for events that a log leaves out, such as progress."""
    match event["kind"]:
        case "stage_started":
            return f"{event['stage']} ..."
        case "stage_finished":
            return f"{event['stage']} done in {event['seconds']:.2f} s"
        case "note":
            return str(event["text"]) if event["level"] == "info" else f"{event['level']}: {event['text']}"
        case "baseline":
            b = event["baseline"]
            perplexity = "beyond a float" if b["perplexity"] is None else f"{b['perplexity']:.4f}"
            return f"baseline perplexity {perplexity} on {b['sequences']} sequences, {b['tokens']} tokens"
        case "topk" if not event["partial"] and event["weights"]:
            first = event["weights"][0]
            score = "" if first["score"] is None else f", score {first['score']:.4g}"
            return f"{event['metric']}: rank 1 is {first['target']}{score}"
        case "damage":
            p = event["point"]
            seed = "" if p["seed"] is None else f" seed {p['seed']}"
            case = f"{p['metric']} k={p['k']} {p['perturbation']} {p['selection']}{seed}"
            if p["collapsed_at"]:
                return f"{case}: collapsed, first at {p['collapsed_at']}"
            perplexity = "beyond a float" if p["perplexity"] is None else f"{p['perplexity']:.4f}"
            # Draws are measured on few texts at first, whose perplexity is not the baseline's.
            texts = f" on {p['sequences']} sequences" if p.get("sequences") else ""
            known = p["delta_low"] is not None and p["delta_high"] is not None  # one text has no interval
            interval = f" [{p['delta_low']:+.4g}, {p['delta_high']:+.4g}]" if known else ""
            return f"{case}: perplexity {perplexity}{texts}, change of the loss {p['delta_nll']:+.4g} nats per token{interval}"
        case "plan":
            return f"{event['plan']['why']}: {event['plan']['command'] or 'no command'}"
        case "inspected":
            facts = event["facts"]
            value = "not finite" if facts["value"] is None else f"{facts['value']:.6g}"
            rank = "" if facts["rank"] is None else f", rank {facts['rank']:,} of {facts['distribution']['count']:,}"
            return f"{facts['target']} is {value}{rank}"
        case "verdict":
            return str(event["verdict"]["sentence"])
        case "copied":
            return str(event["error"]["message"]) if event["error"] else f"copied to {event['folder']}"
        case "state":
            reason = event.get("error")
            return f"{event['state']}: {reason['message']}" if reason else str(event["state"])
    return None


def log_line(event: Mapping[str, Any]) -> str | None:
    """The line of a run's log for an event map that comes now, with the time; None for what a log leaves out."""
    said = describe(event)
    return f"{time.strftime('%H:%M:%S')} {said}" if said else None
