"""What a run finds, as plain frozen rows. Units: nll and delta_nll are nats per token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MATRICES = "_matrices"  # behind a metric's name: its ranking of the matrices in decoder blocks alone
SMALL = 0.1  # nats per token, 10 % of perplexity: a smaller difference is called small
SHOWN = 10  # places of a ranking that the report shows, and down to which it is always compared by halves
SAMPLED_TOP = 20  # of each metric, in a sample for fidelity: all are measured, and compared with the most harmful
MOST_TIMES = 1000  # a larger ratio of changes is shown as more than this: it says nothing more
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
    fan_out: int | None = None  # how many weights read what it writes: 1 in a matrix; None where that is not known
    standard_error: float | None = None  # of an estimated score, 0 of one that was computed exactly after; else None


@dataclass(frozen=True, slots=True)
class Spike:
    """What a weight of a down projection makes of the largest output of its out_feature, over all scoring texts.

    `token`, `token_id` and `position` are None where an expert does not tell which token it was given. In `token` what
    cannot be seen is written as in Python strings, "\\n" for a line feed.
    """

    rank: int  # the weight's
    target: str  # the weight
    module: str
    output: float  # y, of largest |y|, with the layer's bias
    times_typical: float  # |y| over what the module usually writes
    share: float  # x w / y; negative where the weight makes |y| smaller
    token: str | None
    token_id: int | None
    position: int | None  # in its sequence, the first token being 0
    text: int | None  # of the scoring texts, the first being 1; None where all outputs are zero


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """How many of all scored units have a score of this sign with `low` <= |score| < `high`.

    Bins are eight for each doubling of |score|, the same in every run; those without a unit have no row. Two rows are always
    there: that of zeros has sign 0 and both edges 0, that of scores that are not finite has no sign and no edges.
    """

    metric: str
    sign: int | None  # 1 or -1
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """The largest k units of one metric in each group of the scope; those of a smaller k are a prefix.

    `lowest` are the smallest of all, smallest first, where a control asked for them. `parameters` are those that were
    ranked, which controls are drawn from. `spikes` are those of the weights, in their order, where the metric is of spikes.
    `bins` count the scores of all that was ranked; there are none where scores were measured or given.
    """

    metric: str
    weights: tuple[TopWeight, ...]
    lowest: tuple[TopWeight, ...] = ()
    structure: str = "weight"
    parameters: tuple[str, ...] = ()
    halves: tuple[tuple[str, ...], ...] = ()  # the targets that each half of the scoring texts ranks first, in order
    spikes: tuple[Spike, ...] = ()
    bins: tuple[ScoreBin, ...] = ()

    def top(self, k: int) -> tuple[TopWeight, ...]:
        """The k best of each group."""
        return tuple(weight for weight in self.weights if weight.rank <= k)


@dataclass(frozen=True, slots=True)
class RankedParameter:
    """A parameter that was ranked, and by which metrics: what the top of a ranking was chosen from."""

    parameter: str
    component: str
    layer: int | None  # decoder block, None outside the blocks
    units: int  # weights; or rows, columns or heads where these were ranked
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """How the model in memory stores a parameter: [out, in], [in, out] where transposed; a stack has experts first."""

    parameter: str
    shape: tuple[int, ...]
    transposed: bool = False
    experts: int | None = None  # of a stack


@dataclass(frozen=True, slots=True)
class Baseline:
    """The intact model on the evaluation texts."""

    nll: float
    perplexity: float
    bits_per_byte: float | None  # over the bytes that the scored tokens stand for; None where a tokenizer does not tell
    sequences: int
    tokens: int  # scored tokens: all but a sequence's BOS, or without one all but its first
    protocol: str
    vocabulary: int = 0  # tokens the model chooses from; guessing at random has perplexity `vocabulary`

    @property
    def scored_bytes(self) -> int | None:
        """How many bytes the scored tokens stand for; texts cut at as many tokens have others with another tokenizer."""
        if not self.bits_per_byte or not math.isfinite(self.bits_per_byte):
            return None
        return round(self.nll * self.tokens / (math.log(2) * self.bits_per_byte))

    @property
    def is_guessing(self) -> bool:
        """Whether the loss is less than 0.1 nats per token better than that of guessing among all tokens."""
        return self.vocabulary > 1 and self.nll > math.log(self.vocabulary) - SMALL


@dataclass(frozen=True, slots=True)
class DamagePoint:
    """The damaged model on texts on which the intact model was measured.

    `delta_nll` is paired per sequence with a 95 % interval: Student's t on a jackknife over the sequences. A loss that is
    not finite is named in `collapsed_at` (the first layer whose output is not finite) and never averaged away. Critical
    sets are measured on all evaluation texts, draws of controls on as many as make the answer clear: `sequences`.
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
    sequences: int = 0  # that it was measured on

    @property
    def size(self) -> float:
        """How far the loss moved, in nats per token; infinite where it is not finite."""
        return abs(self.delta_nll) if math.isfinite(self.delta_nll) else math.inf


def leading_draw(draws: Sequence[DamagePoint]) -> DamagePoint:
    """The draw of one control that came out ahead of the others, so far: of those on most texts the one with most change."""
    return max(draws, key=lambda draw: (draw.sequences, draw.size))


@dataclass(frozen=True, slots=True)
class HalfOverlap:
    """How many of the top k by all scoring texts are in the top k by each half of them, and by both.

    `common` is how many the halves have in common, `chance` how many two random sets of k have on average.
    """

    metric: str
    k: int
    first: int
    second: int
    both: int
    common: int
    chance: float


@dataclass(frozen=True, slots=True)
class ControlDraw:
    """One unit of one draw of a control, as `--weights` takes it, so that others can measure the same draws."""

    metric: str
    k: int
    control: str
    seed: int | None  # None for a control that is not drawn
    target: str


@dataclass(frozen=True, slots=True)
class Separation:
    """A critical set beside the draws of one control.

    They compete in an elimination on growing parts of the evaluation texts, of which the last round has `texts`. `as_extreme`
    is the number of draws that came out ahead of the critical set, and `p_value` is (1 + as_extreme) / (1 + draws), an exact
    rank test; None where there are too few draws for one. `critical` is the change of the loss by the critical set on these
    texts, `median` that by the draws, each on the texts that it was measured on.

    `largest` is the change by the draw that came out ahead of all others, with its 95 % interval, on `largest_texts` texts,
    and `ratio` is |change by the critical set on all texts| over |largest|, the latter taken to be at least the numerical
    floor. Changes are in nats per token; None where a loss is not finite.

    Runs of early versions have no `largest_texts`: they measured every draw on `texts` texts, on which `median` and
    `as_extreme`, the number of draws with as large a change, are, and the largest on all.
    """

    metric: str
    k: int
    perturbation: str
    control: str
    draws: int
    texts: int
    critical: float | None
    median: float | None
    as_extreme: int
    p_value: float | None
    largest: float | None
    largest_low: float | None
    largest_high: float | None
    ratio: float | None
    beyond: bool  # whether the critical set changes the loss more than the draw that came out ahead of all others
    largest_texts: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a critical set is distinguishable from its controls, in one plain sentence.

    `outcome` is "harmful" or "helpful" where it is, "indistinguishable" where it was tested and is not, else "not tested".
    """

    metric: str
    k: int
    perturbation: str
    outcome: str
    sentence: str

    @property
    def distinguishable(self) -> bool:
        return self.outcome in ("harmful", "helpful")


@dataclass(frozen=True, slots=True)
class NumericalFloor:
    """What measuring itself changes, in nats per token: differences below this mean nothing."""

    repeat: float  # the intact model measured again, after all edits
    rounding: float  # the most that random weights change the loss by when each moves to the next value its dtype has

    @property
    def largest(self) -> float:
        return max(abs(self.repeat), self.rounding)


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
class PlacedValue:
    """The value of one weight and where it is."""

    target: str
    value: float


@dataclass(frozen=True, slots=True)
class WeightLine:
    """A row, a column, a vector or the columns of a head: `around` a weight in order, and the `largest` |values| of it."""

    kind: str  # "row", "column", "vector" or "head"
    target: str
    weights: int
    norm: float  # Euclidean
    rank: int | None  # of the weight's |value| in it, 1 for the largest; None where no single weight is meant
    around: tuple[PlacedValue, ...]  # the weight itself among them; empty where no single weight is meant
    largest: tuple[PlacedValue, ...]  # largest first


@dataclass(frozen=True, slots=True)
class Quantile:
    """The smallest value that at least this `share` of all values do not exceed."""

    share: float
    value: float


@dataclass(frozen=True, slots=True)
class ValueDistribution:
    """The values of all weights of a tensor, or the norms of all its rows, columns or heads.

    `counts[i]` values are at least `edges[i]` and less than `edges[i + 1]`; the last bin has its upper edge too. All bins
    are of equal width. Everything but `not_finite` is of finite values; without one there are no quantiles and no bins.
    """

    count: int  # finite values
    not_finite: int
    mean: float
    std: float  # of the population
    quantiles: tuple[Quantile, ...]  # from the smallest value, share 0, to the largest, share 1
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """A weight, row, column or head of a loaded model among its like in the same tensor."""

    target: str
    parameter: str
    structure: str
    layer: int | None
    component: str
    expert: int | None
    shape: tuple[int, ...]  # as stored
    transposed: bool  # stored as [in, out]
    dtype: str
    flat_index: int  # of its first weight in the stored tensor
    value: float  # of a row, column or head its Euclidean norm
    rank: int | None  # of |value|: 1 + how many are larger; None where the value is not finite
    equal: int  # how many others have the same |value|
    smaller_share: float | None  # of all finite values, how many have a smaller |value|
    distribution: ValueDistribution
    lines: tuple[WeightLine, ...]  # its row and its column, its vector, or itself


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
    cpu_bytes: int = 0  # of CPU memory, for blocks and hidden states that wait there


@dataclass(frozen=True, slots=True)
class PlanOption:
    """A way of running that fits, to choose instead of the one that is recommended."""

    command: str
    why: str
    dtype: str
    gradients: str
    needed_bytes: int  # on the device
    cpu_bytes: int  # of CPU memory, with offload


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
    note: str = ""  # what the plan rests on, where the model's own files are not there
    # To choose from where the usual dtype does not fit on the device: all that fits, the recommended way among them.
    options: tuple[PlanOption, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelOnDisk:
    """A model that can be loaded without a download, as its config and the headers of its files have it."""

    model: str
    location: str  # the Hub id, or the path of the folder or file
    kind: str  # hub, folder or gguf
    revision: str | None  # the commit, of a model of the Hub
    model_type: str
    architecture: str  # the class of transformers
    parameters: int  # tied weights count once
    dtype: str  # in which most weights are stored
    size_bytes: int  # of the weights as they are stored
    notes: tuple[str, ...] = ()  # what a reader of results must know about the loading


def exp(nll: float) -> float:
    """math.exp that answers infinity where the result exceeds a float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


NOT_PLAIN = {"plain": False}


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, NaN and infinity as None: what JSON and the wire can hold.

    A float that is not finite has its reason beside it (`collapsed_at`), so None loses nothing. Fields with `NOT_PLAIN` as
    their metadata are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (entry for entry in dataclasses.fields(value) if entry.metadata.get("plain", True))
        return {entry.name: to_plain(getattr(value, entry.name)) for entry in fields}
    if isinstance(value, dict):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
