"""What a run finds, as plain frozen rows. Units: nll and delta_nll are nats per token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIVEN = "given"  # stands for the metric where weights are given by name


@dataclass(frozen=True, slots=True)
class TopWeight:
    """One weight of a ranking, or one row, column or head. Feature indices are (out, in) whatever the storage order."""

    rank: int
    parameter: str
    flat_index: int  # of a structure's first weight
    out_feature: int | None  # None for columns and heads
    in_feature: int | None  # None for rows, heads and one-dimensional parameters
    value: float  # of a structure its Euclidean norm
    score: float | None  # None for weights that were given, not ranked
    layer: int | None  # decoder block, None outside the blocks
    component: str
    expert: int | None  # None outside stacks of experts
    target: str  # as `--weights` takes it
    stable: bool | None = None  # in the top list of every repeat; None where stability was not asked for


@dataclass(frozen=True, slots=True)
class Ranking:
    """The largest k units of one metric in each group of the scope; those of a smaller k are a prefix.

    `lowest` are the smallest of all, smallest first, where a control asked for them. `parameters` are those that were
    ranked, which controls are drawn from.
    """

    metric: str
    weights: tuple[TopWeight, ...]
    lowest: tuple[TopWeight, ...] = ()
    structure: str = "weight"
    parameters: tuple[str, ...] = ()

    def top(self, k: int) -> tuple[TopWeight, ...]:
        """The k best of each group."""
        return tuple(weight for weight in self.weights if weight.rank <= k)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The intact model on the evaluation texts."""

    nll: float
    perplexity: float
    bits_per_byte: float | None  # over the bytes that the scored tokens stand for; None where a tokenizer does not tell
    sequences: int
    tokens: int  # scored tokens: all but a sequence's BOS, or without one all but its first
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
    kl: float | None = None  # mean KL divergence from the intact model, nats per token; None where not asked for
    top1_agreement: float | None = None  # share of tokens whose likeliest prediction is the intact model's
    collapsed_at: str | None = None


@dataclass(frozen=True, slots=True)
class Separation:
    """How far the critical set stands out from the draws of one control.

    `control_delta` is the mean delta_nll of the draws with its bootstrap 95 % interval, `worst` the largest of a draw.
    `ratio` is delta_nll of the critical set over the mean |delta_nll| of the draws, with its interval; None where the
    draws did not move the loss at all. All are None where a draw, or for the ratio the critical set, collapsed.
    `p_value` is (1 + draws at least as bad) / (1 + draws), `p_holm` the same corrected for all critical sets that the run
    compares with this control. `beyond` says whether the critical set changes the loss more than the draw that changes it
    most, with the whole paired interval of the difference.
    """

    metric: str
    k: int
    perturbation: str
    control: str
    draws: int
    control_delta: float | None
    control_low: float | None
    control_high: float | None
    worst: float | None
    ratio: float | None
    low: float | None
    high: float | None
    p_value: float
    p_holm: float
    beyond: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a critical set is distinguishable from its controls, in one plain sentence."""

    metric: str
    k: int
    perturbation: str
    distinguishable: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class NumericalFloor:
    """What measuring itself changes, in nats per token: differences below this mean nothing."""

    repeat: float  # the intact model measured again, after all edits
    null_edit: float  # an edit that writes the values that are there already

    @property
    def largest(self) -> float:
        return max(abs(self.repeat), abs(self.null_edit))


@dataclass(frozen=True, slots=True)
class Interaction:
    """One unit of a critical set: damaged alone, and the set damaged without it.

    `share` is what it adds to the set, delta of the set minus delta without it. Intervals are paired bootstrap 95 %.
    `role` is "alone" where its own damage matters (see `perturbation.interactions`), "together" where only its share
    does, else "inert".
    """

    metric: str
    k: int
    perturbation: str
    target: str
    alone: float
    alone_low: float
    alone_high: float
    without: float
    share: float
    share_low: float
    share_high: float
    role: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two repeats of a ranking, by other texts, agree. `first` and `second` number the repeats from 1.

    `chance` is the Jaccard index that random sets of this size would have. `spearman` is over one random sample of all
    ranked units, not over the top alone. None for figures that are not defined.
    """

    metric: str
    k: int
    first: int
    second: int
    jaccard: float
    chance: float
    rbo: float
    spearman: float | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One sampled unit: what each metric says of it, and the measured loss change of zeroing it alone."""

    target: str
    stratum: str
    delta_nll: float
    delta_low: float
    delta_high: float
    scores: tuple[float | None, ...]  # in the order of the run's metrics; None for what a metric does not rank


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a metric predicts the measured |loss change| over the sample."""

    metric: str
    units: int
    spearman: float | None
    top: int  # how many are compared
    overlap: int  # of the `top` best by score among the `top` most harmful


@dataclass(frozen=True, slots=True)
class Ablation:
    """One candidate: the measured change of the scoring texts' loss when it alone is zeroed, with its 95 % interval.

    A candidate that was dropped was measured on some of the texts, and its figures are of those. `exact` marks those that
    were measured on all.
    """

    place: int  # among the candidates, the most harmful is 1
    target: str
    delta_nll: float  # nats per token; infinite where the model collapsed
    delta_low: float
    delta_high: float
    texts: int
    tokens: int
    exact: bool


@dataclass(frozen=True, slots=True)
class AblationRound:
    """How many candidates were measured on how many texts, those of the rounds before included.

    A weight of the token embedding may have been measured on one text more, see `perturbation.ablation`.
    """

    texts: int
    candidates: int


@dataclass(frozen=True, slots=True)
class AblationCost:
    """What the exact ranking took, in forward passes over all scoring texts."""

    candidates: int
    texts: int
    rounds: tuple[AblationRound, ...]
    spent: float
    naive: float  # one pass for each candidate, and one for the intact model


@dataclass(frozen=True, slots=True)
class CriticalSetStep:
    """A set of the critical set's search: the weights of the steps so far, all zeroed together.

    `scoring_ratio` is the perplexity ratio on the scoring texts, which chose the weights; the other figures are of the
    evaluation texts.
    """

    size: int
    target: str  # which this step added
    scoring_ratio: float
    delta_nll: float
    delta_low: float
    delta_high: float
    perplexity_ratio: float


@dataclass(frozen=True, slots=True)
class CriticalSet:
    """The smallest set found whose zeroing multiplies perplexity by `factor`; not `reached` where no set found does."""

    factor: float
    reached: bool
    steps: tuple[CriticalSetStep, ...]


@dataclass(frozen=True, slots=True)
class SequenceNll:
    """NLL of one sequence in one case, so that any statistic can be redone."""

    metric: str
    k: int | None
    perturbation: str
    selection: str  # "intact", "critical" or the name of a control
    seed: int | None
    sequence: int  # the first is 1
    tokens: int
    nll_sum: float  # nats


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
    scoring_sha256: str = ""
    evaluation_sha256: str = ""
    repeated: int = 0  # texts left out because they had occurred before
    overlap: int = 0  # texts on both sides, by their hashes: none, where there are two texts or more
    packed: bool = False  # texts joined and cut into windows of the sequence length
    seq_len: int = 0  # the sequence length, in tokens: as asked for, or the model's where that is less
    bos: str = ""  # what every sequence or window begins with, "<s>"; empty for nothing
    too_short: tuple[int, ...] = ()  # numbers of the texts left out because no token of them could be scored
    damage: int = 0  # sequences the damage is measured on; 0 where no damage was asked for


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What one way of scoring needs, in bytes."""

    dtype: str
    gradients: str  # "resident", "sweep", or "offload" for the sweep with blocks in CPU memory
    weights_bytes: int
    working_bytes: int  # beside the weights, at the peak, with `batch_size` sequences at once
    total_bytes: int  # of the whole process on a CPU; of the weights and the work on an accelerator
    batch_size: int
    fits: bool | None  # None where it is not known what the device has
    simulated: bool  # False where the model cannot be run without weights, and the figures are rough


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need on the device in view, and the command line for it."""

    model: str
    parameters: int
    device: str
    free_bytes: int | None  # None where this machine has no such device
    reclaimable_bytes: int  # more, when warm models make room
    sequences: int  # that are scored
    longest: int  # tokens of the longest of them
    metrics: tuple[str, ...]
    rows: tuple[PlanRow, ...]
    command: str | None  # None where nothing fits
    why: str


@dataclass(frozen=True)
class RunResult:
    """All that a run found; `reporting.export` turns it into files."""

    parameters: int
    eligible: int  # weights that --include and --exclude leave
    texts: TextUse
    baseline: Baseline
    rankings: tuple[Ranking, ...]
    damage: tuple[DamagePoint, ...] = ()
    separations: tuple[Separation, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    stability: tuple[Agreement, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    ablations: tuple[Ablation, ...] = ()
    ablation_cost: AblationCost | None = None
    critical_set: CriticalSet | None = None
    evaluations: tuple[SequenceNll, ...] = ()
    floor: NumericalFloor | None = None
    gradients: str = "resident"  # the source that was used
    scores_from: dict[str, str] = field(default_factory=dict)  # metric -> run that scored it; empty where this one did
    batch_size: int = 1  # sequences at once, after whatever halving there was
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    peak_memory_bytes: int = 0


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """What an exact ranking took, by the fields of `AblationCost`."""
    rounds = ", ".join(f"{entry['candidates']:,} on {entry['texts']}" for entry in cost["rounds"])
    return (
        f"the exact ranking of {cost['candidates']:,} candidates took the work of {cost['spent']:,.1f} forward passes over "
        f"the {cost['texts']} scoring texts; one by one it takes {cost['naive']:,.0f}, {cost['naive'] / cost['spent']:.1f} "
        f"times as many (candidates on texts: {rounds})"
    )


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
