"""What is found out about one weight, as plain frozen rows. Units: nll and delta_nll are nats per token."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.rows import Baseline, DamagePoint, TextUse, WeightFacts


@dataclass(frozen=True, slots=True)
class MetricRank:
    """The place of a weight in the ranking of all eligible weights by one metric, 1 for the largest score; exact."""

    metric: str
    score: float | None
    rank: int | None
    of: int


@dataclass(frozen=True, slots=True)
class NeighbourDamage:
    """A weight together with others of its row, column or tensor, all zeroed: more or less than the sum of each alone?"""

    group: str  # "row", "column" or "tensor": where the largest others were taken from
    targets: tuple[str, ...]  # the weight first
    joint: DamagePoint
    sum_alone: float  # nats per token; NaN where a loss is not finite


@dataclass(frozen=True, slots=True)
class BitFlip:
    """One stored bit of the weight flipped, in one dtype."""

    dtype: str
    bit: int  # 0 is the lowest
    part: str  # "sign", "exponent" or "fraction"
    value: float  # before, in that dtype
    flipped: float  # after; NaN and infinity are kept
    in_range: bool  # whether |flipped| is at most the largest |value| of the layer
    delta_nll: float | None  # None where the loss is not finite
    perplexity_ratio: float | None
    collapsed_at: str | None


@dataclass(frozen=True, slots=True)
class ChannelActivity:
    """What the channel that a weight reads or writes carries, over all texts that were looked at."""

    side: str  # "input" or "output"
    module: str
    channel: int
    largest: float  # of largest |activation|
    typical: float  # median |activation| of the module's channels
    token: str
    token_id: int
    position: int
    text: int
    top_tokens: tuple[tuple[str, float], ...]  # tokens of the largest |activations|, each with its own


@dataclass(frozen=True, slots=True)
class TokenShift:
    """A token whose mean probability the weight raises or lowers: that of the intact model less that without the weight."""

    token: str
    token_id: int
    intact: float
    damaged: float


@dataclass(frozen=True, slots=True)
class StopwordMass:
    """The mean probability of all stopwords together (Yu et al. 2024, section 3.3)."""

    words: int
    tokens: int
    intact: float
    damaged: float


@dataclass(frozen=True, slots=True)
class ChannelLayer:
    """One channel of the residual stream behind one decoder block, at the token where it is largest."""

    layer: int
    value: float  # of the residual stream, intact
    damaged: float  # without the weight
    written: float  # what the block adds
    event: str  # "born", "cancelled" or ""


@dataclass(frozen=True, slots=True)
class ChannelShare:
    """One weight's share of what the layer at which the spike is born writes into the channel."""

    target: str
    share: float  # x w / y


@dataclass(frozen=True, slots=True)
class WeightCard:
    """All that is known of one weight of a model."""

    model: str
    revision: str | None
    fingerprint: str  # of the model's files, as in the manifest of a run
    dtype: str
    facts: WeightFacts
    texts: TextUse
    baseline: Baseline
    ranks: tuple[MetricRank, ...]
    alone: DamagePoint
    neighbours: tuple[NeighbourDamage, ...]
    doses: tuple[DamagePoint, ...]
    bits: tuple[BitFlip, ...]
    activity: tuple[ChannelActivity, ...]
    raised: tuple[TokenShift, ...]
    lowered: tuple[TokenShift, ...]
    stopwords: StopwordMass | None
    channel: int | None  # of the residual stream that the weight writes to or reads from; None where there is none
    life: tuple[ChannelLayer, ...]
    shares: tuple[ChannelShare, ...]
    unknown: tuple[str, ...] = ()  # what could not be found out, and why
