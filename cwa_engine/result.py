"""What a run finds, as plain frozen rows. Units: nll and delta_nll are nats per token."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TopWeight:
    """One weight of a ranking. Feature indices are (out, in) whatever the storage order."""

    rank: int
    parameter: str
    flat_index: int
    out_feature: int
    in_feature: int | None  # None for one-dimensional parameters
    value: float
    score: float
    layer: int | None  # decoder block, None outside the blocks
    component: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """The largest k weights of one metric, rank 1 first; smaller k are prefixes.

    `lowest` are the k smallest, smallest first, where a control asked for them.
    """

    metric: str
    weights: tuple[TopWeight, ...]
    lowest: tuple[TopWeight, ...] = ()


@dataclass(frozen=True, slots=True)
class Baseline:
    """The intact model on the evaluation texts."""

    nll: float
    perplexity: float
    bits_per_byte: float
    sequences: int
    tokens: int  # scored tokens: every token but the first of its sequence
    protocol: str


@dataclass(frozen=True, slots=True)
class DamagePoint:
    """The damaged model on the same texts as the baseline.

    `delta_nll` is paired per sequence with a bootstrap 95 % interval. A loss that is not finite is named in
    `collapsed_at` (the first layer whose output is not finite) and never averaged away.
    """

    metric: str
    k: int
    perturbation: str
    selection: str  # "critical" or the name of a control
    seed: int | None  # None for selections that are not drawn
    weights: int
    nll: float
    perplexity: float
    delta_nll: float
    delta_low: float
    delta_high: float
    perplexity_ratio: float
    collapsed_at: str | None = None


@dataclass(frozen=True, slots=True)
class Separation:
    """How far the critical set stands out from the draws of one control.

    `control_delta` is the mean delta_nll of the draws with its bootstrap 95 % interval. `ratio` is delta_nll of the
    critical set over the mean |delta_nll| of the draws, with its interval; None where the draws did not move the loss
    at all. All are None where a draw, or for the ratio the critical set, collapsed.
    """

    metric: str
    k: int
    perturbation: str
    control: str
    draws: int
    control_delta: float | None
    control_low: float | None
    control_high: float | None
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class TextUse:
    """Which texts were used for what."""

    source: str
    sha256: str  # of all texts, in order
    texts: int
    scoring: int
    evaluation: int
    shared: bool  # the same text was scored and evaluated, for there was only one
    truncated: int  # texts cut at the sequence length
    damage: int = 0  # texts the damage is measured on; 0 where no damage was asked for


@dataclass(frozen=True)
class RunResult:
    """All that a run found; `reporting.export` turns it into files."""

    parameters: int
    texts: TextUse
    baseline: Baseline
    rankings: tuple[Ranking, ...]
    damage: tuple[DamagePoint, ...]
    separations: tuple[Separation, ...]
    baseline_drift: float | None  # nats between the first and the last measure of the intact model
    timings: dict[str, float]  # stage -> seconds
    peak_memory_bytes: int
    notes: tuple[str, ...] = field(default=())


def exp(nll: float) -> float:
    """math.exp that answers infinity where the result exceeds a float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, NaN and infinity as None: what JSON and the wire can hold.

    A float that is not finite has its reason beside it (`collapsed_at`), so None loses nothing.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
