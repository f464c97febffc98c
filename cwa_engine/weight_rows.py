"""What is found out about one weight, as plain frozen rows. Units: nll and delta_nll are nats per token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cwa_engine.rich_display import RichDisplay
from cwa_engine.rows import Baseline, DamagePoint, NumericalFloor, TextUse, WeightFacts


@dataclass(frozen=True, slots=True)
class MetricRank:
    """The place of a weight among all weights that a metric ranks: 1 + how many have a larger score. Exact.

    `rank_in_matrices` is its place among the matrices of decoder blocks alone. `why` says what is None.
    """

    metric: str
    score: float | None
    rank: int | None
    of: int  # weights that the metric ranks
    equal: int = 0  # how many others have the same score
    rank_in_matrices: int | None = None
    of_matrices: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class NeighbourDamage:
    """A weight together with others of its row, column or tensor, all zeroed: more or less than the sum of each alone?"""

    group: str  # "row", "column" or "tensor": where the largest others were taken from
    targets: tuple[str, ...]  # the weight first
    joint: DamagePoint
    sum_alone: float  # nats per token; NaN where a loss is not finite
    alone: tuple[float, ...] = ()  # of each target by itself, in their order; NaN as above
    excess: float = math.nan  # joint less the sum of each alone, paired per sequence, with its 95 % interval
    excess_low: float = math.nan
    excess_high: float = math.nan


@dataclass(frozen=True, slots=True)
class BitFlip:
    """One stored bit of the weight flipped, in one dtype; the value is rounded to it first.

    What the loaded model's own dtype cannot hold exactly is not measured. Losses are of `sequences` texts, a few of those
    that all other damage is measured on.
    """

    dtype: str
    bit: int  # 0 is the lowest
    part: str  # "sign", "exponent" or "fraction"
    value: float  # before, in that dtype
    flipped: float  # after; `becomes` says which it is where it is not finite
    in_range: bool  # whether |flipped| is at most the largest |value| of the layer that has the weight
    delta_nll: float | None  # nats per token; None where the loss is not finite, or nothing was measured
    perplexity_ratio: float | None
    collapsed_at: str | None
    becomes: str = "finite"  # "finite", "infinity", "-infinity" or "NaN": the wire keeps no value that is not finite
    held: bool = True  # whether the model's dtype holds the flipped value exactly
    delta_low: float | None = None  # 95 % interval, paired per sequence
    delta_high: float | None = None
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class TokenActivation:
    """An activation and the token at which it is. Token and position are None where a module does not tell them."""

    value: float
    token: str | None
    token_id: int | None
    position: int | None  # in its text, the first token being 0
    text: int  # of the evaluation texts, the first being 1


@dataclass(frozen=True, slots=True)
class ChannelActivity:
    """What the channel that a weight reads or writes carries, over all evaluation texts.

    `typical` is the median over tokens of the root mean square of a token's activations, all channels of the module
    together, as in the metric super_weight. Side "residual" is the residual stream behind the block where it is largest.
    """

    side: str  # "input", "output" or "residual"
    module: str
    channel: int
    largest: float  # the activation of largest |value|, with its sign
    typical: float
    token: str | None
    token_id: int | None
    position: int | None
    text: int
    top_tokens: tuple[TokenActivation, ...]  # of the largest |activations|, the largest first


@dataclass(frozen=True, slots=True)
class TokenShift:
    """A token whose mean probability the weight raises or lowers: that of the intact model less that without the weight."""

    token: str
    token_id: int
    intact: float
    damaged: float


@dataclass(frozen=True, slots=True)
class StopwordMass:
    """The mean probability of all stopwords together (Yu et al. 2024, section 3.3).

    `words` is the length of the list, `tokens` how many tokens of the vocabulary are one of its words.
    """

    words: int
    tokens: int
    intact: float
    damaged: float


@dataclass(frozen=True, slots=True)
class ChannelLayer:
    """One channel of the residual stream behind one decoder block, at the token where it is largest in the intact model."""

    layer: int  # -1 for what the first block is given
    value: float  # of the residual stream, intact
    damaged: float  # without the weight
    written: float  # what the block adds
    event: str  # "born", "cancelled" or ""


@dataclass(frozen=True, slots=True)
class ChannelShare:
    """One weight's share of what the layer at which the spike is born writes into the channel."""

    target: str
    share: float  # x w / y, of the module that writes most into the channel there
    contribution: float = math.nan  # x w


@dataclass(frozen=True, slots=True)
class WeightCard(RichDisplay):
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
    floor: NumericalFloor | None = None  # changes below it mean nothing
    device: str = ""
    version: str = ""  # of cwtool
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds
