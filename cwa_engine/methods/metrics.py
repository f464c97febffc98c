"""The metrics: one function each, from a weight tensor and its statistics to a score of the same shape.

g = dL/dw is the gradient of L, the mean over all scored tokens t of their NLL l_t; F is the mean over these tokens of
(dl_t/dw)², estimated with random signs, see `totals`. L_s is the mean NLL of sequence s, n is how many sequences there
are. For a linear layer y = W x + b, ‖x‖² is, for each in_feature, the mean over sequences of the sum over tokens of x².
Imports without torch: tensors are used through their methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Protocol

from cwa_engine.base.registry import Registry, first_sentence

if TYPE_CHECKING:
    from torch import Tensor

    from cwa_engine.data.tokens import TokenSequence


class Needs(Flag):
    """What a metric needs of the passes over the scoring texts."""

    NOTHING = 0
    GRADIENT = auto()
    FISHER = auto()  # the gradient of each sequence's mean NLL, squared
    TOKEN_FISHER = auto()  # that of each sequence's NLL with random signs, squared: a backward pass of its own
    HESSIAN = auto()  # two more passes per probe
    INPUTS = auto()  # what linear layers read; such a metric ranks their weights in the decoder blocks alone
    INPUT_GRAM = auto()  # a matrix of in_features squared for each linear layer
    SPIKES = auto()  # the largest outputs of down projections; such a metric ranks their weights alone

    @property
    def backward(self) -> bool:
        """Whether gradients of first order are needed."""
        return bool(self & (Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER))

    @property
    def squares(self) -> bool:
        """Whether gradients are squared, so that those of each sequence must be told apart."""
        return bool(self & (Needs.FISHER | Needs.TOKEN_FISHER))

    @property
    def activations(self) -> bool:
        """Whether what goes through linear layers is needed."""
        return bool(self & (Needs.INPUTS | Needs.INPUT_GRAM | Needs.SPIKES))


class LargestOutputs(Protocol):
    """A down projection at the tokens of its out_features' largest outputs, as `sensitivity.spikes` records it."""

    @property
    def inputs(self) -> Tensor:
        """x of each weight, shaped like the weights as they are stored."""

    @property
    def typical(self) -> float:
        """The size of usual outputs."""

    def rows(self, start: int, stop: int) -> LargestOutputs:
        """Those of rows `start` to `stop` of the first stored axis."""

    def numbered(self, part: int, parts: int) -> Any:
        """The same with the texts numbered among all, of which this part had one in turn with the other parts."""

    def joined(self, other: Any) -> Any:
        """The larger of these outputs and of those on other texts."""


@dataclass(frozen=True, slots=True)
class WeightStats:
    """Accumulated statistics of one parameter, float32 or better; None where not asked for.

    Gradients are shaped like the parameter as it is stored. What belongs to a feature is shaped to be multiplied with
    it: along its in axis, or its out axis, with length one along the other.
    """

    gradient: Tensor | None = None  # g
    fisher: Tensor | None = None  # mean over sequences of (dL_s/dw)²
    token_fisher: Tensor | None = None  # F
    hessian: Tensor | None = None  # diag H
    hessian_error: Tensor | None = None  # its standard error over probes
    input_norm: Tensor | None = None  # ‖x‖ of each in_feature
    input_factor: Tensor | None = None  # d of each in_feature, see `obs`
    spikes: LargestOutputs | None = None
    sequences: int = 0  # n

    @property
    def is_linear(self) -> bool:
        """Whether inputs were recorded, as they are for linear layers alone."""
        return self.input_norm is not None or self.input_factor is not None

    def rows(self, start: int, stop: int) -> WeightStats:
        """The statistics of rows `start` to `stop` of the first stored axis, as views."""
        tensors = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("sequences", "spikes")
        }
        sliced = {}
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dim() == 0:
                sliced[name] = tensor.reshape(1)
            elif tensor is not None and len(tensor) > 1:  # of length one: the same for all rows
                sliced[name] = tensor[start:stop]
        spikes = self.spikes.rows(start, stop) if self.spikes else None
        return dataclasses.replace(self, **sliced, spikes=spikes)


@dataclass(frozen=True, slots=True)
class PartShares:
    """The shares of two disjoint parts of the scoring texts: by tokens and by sequences, each of which add up to one."""

    tokens: tuple[float, ...]
    sequences: tuple[float, ...]

    @classmethod
    def of(cls, parts: Sequence[Sequence[TokenSequence]]) -> PartShares:
        tokens = [sum(sequence.scored_tokens for sequence in part) for part in parts]
        return cls(
            tuple(count / sum(tokens) for count in tokens),
            tuple(len(part) / sum(map(len, parts)) for part in parts),
        )


# What statistics of parts can be joined of.
JOINABLE_NEEDS = Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER | Needs.INPUTS | Needs.SPIKES


def joined(by_part: Sequence[Mapping[str, WeightStats]], parts: PartShares) -> dict[str, WeightStats]:
    """The statistics of all texts from those of two parts, dealt in turns, whose tensors are used up."""
    first, second = by_part
    return {name: _joined(stats, second[name], parts) for name, stats in first.items()}


def _joined(first: WeightStats, second: WeightStats, parts: PartShares) -> WeightStats:
    found: dict[str, Any] = {}
    for name, shares in (
        ("gradient", parts.tokens), ("token_fisher", parts.tokens), ("fisher", parts.sequences)
    ):  # fmt: skip
        one, other = getattr(first, name), getattr(second, name)
        if one is not None:
            found[name] = one.mul_(shares[0]).add_(other, alpha=shares[1])
    if first.input_norm is not None and second.input_norm is not None:  # root of a mean over sequences
        squares = first.input_norm.square() * parts.sequences[0] + second.input_norm.square() * parts.sequences[1]
        found["input_norm"] = squares.sqrt()
    spikes = [of.spikes.numbered(part, 2) for part, of in enumerate((first, second)) if of.spikes]
    if spikes:  # a routed module may have read nothing in one of the parts
        found["spikes"] = reduce(lambda one, other: one.joined(other), spikes)
    return WeightStats(**found, sequences=first.sequences + second.sequences)


Score = Callable[["Tensor", WeightStats], "Tensor"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A scoring rule. `score` takes float32 weights and works on any block of rows of a parameter.

    `summary` is what help texts and tables say of it.
    """

    name: str
    formula: str
    needs: Needs
    source: str
    summary: str
    score: Score | None  # None where weights are measured one by one, see `perturbation.ablation`

    @property
    def linear_only(self) -> bool:
        """Whether it ranks the weights of linear layers alone, see `activations.linear_parameters`."""
        return self.needs.activations

    @property
    def down_projections_only(self) -> bool:
        """Whether it ranks the weights of down projections alone."""
        return Needs.SPIKES in self.needs

    @property
    def restriction(self) -> str:
        """What its weights must be of; empty for a metric that ranks all."""
        return (
            "down projections"
            if self.down_projections_only
            else "linear layers in the decoder blocks"
            if self.linear_only
            else ""
        )

    def ranks(self, stats: WeightStats) -> bool:
        """Whether it ranks the weights that these statistics are of."""
        if self.down_projections_only:
            return stats.spikes is not None
        return stats.is_linear or not self.linear_only


METRICS: Registry[Metric] = Registry("metric")
ABLATION = "ablation"
# Who names the candidates of ablation where nobody else does, in turns. Gradients have two thirds: of the 10 most harmful
# weights of 155 measured on Gemma 3 270M, 100 candidates hold 10 this way, 9 by equal turns.
CANDIDATE_TURNS = ("grad_x_weight", "taylor", "super_weight", "grad_x_weight", "taylor", "magnitude")
CANDIDATE_METRICS = tuple(dict.fromkeys(CANDIDATE_TURNS))


def metric(name: str, formula: str, needs: Needs, source: str) -> Callable[[Score], Score]:
    """Register a scoring function under `name`."""

    def register(score: Score) -> Score:
        METRICS.add(name, Metric(name, formula, needs, source, first_sentence(score), score))
        return score

    return register


def needs_of(names: tuple[str, ...]) -> Needs:
    """What must be collected so that all these metrics can be scored from it."""
    return reduce(or_, (METRICS[name].needs for name in names), Needs.NOTHING)


@metric("grad_x_weight", "|w g|", Needs.GRADIENT, "first-order Taylor, Molchanov et al. 2017")
def grad_x_weight(weight: Tensor, stats: WeightStats) -> Tensor:
    """First-order loss change of zeroing each weight, in nats per token. Shape of `weight`."""
    assert stats.gradient is not None
    return (weight * stats.gradient).abs_()


@metric("grad_squared", "mean_s (dL_s/dw)²", Needs.FISHER, "Fisher per sequence, SqueezeLLM, Kim et al. 2023")
def grad_squared(weight: Tensor, stats: WeightStats) -> Tensor:
    """Mean over sequences of the squared gradient of the sequence's mean NLL. Shape of `weight`."""
    assert stats.fisher is not None
    return stats.fisher


@metric("obd", "F w² / 2", Needs.TOKEN_FISHER, "LeCun et al. 1990 with the empirical Fisher per token for the Hessian")
def optimal_brain_damage(weight: Tensor, stats: WeightStats) -> Tensor:
    """Second-order loss change of zeroing each weight, by the Fisher diagonal, in nats per token. Shape of `weight`."""
    assert stats.token_fisher is not None
    return stats.token_fisher * weight.square() / 2


@metric(
    "taylor",
    "|F w² / 2 - g w|",
    Needs.GRADIENT | Needs.TOKEN_FISHER,
    "both orders together, LeCun et al. 1990, eq. 1",
)
def taylor(weight: Tensor, stats: WeightStats) -> Tensor:
    """Loss change of zeroing each weight by both orders, by the Fisher diagonal, in nats per token. Shape of `weight`."""
    assert stats.gradient is not None and stats.token_fisher is not None
    return (stats.token_fisher * weight.square() / 2 - stats.gradient * weight).abs_()


@metric("magnitude", "|w|", Needs.NOTHING, "the usual pruning baseline, Han et al. 2015")
def magnitude(weight: Tensor, stats: WeightStats) -> Tensor:
    """Absolute value of each weight, which needs no text. Shape of `weight`."""
    return weight.abs()


@metric(
    "hutchinson_diag",
    "|diag H|",
    Needs.HESSIAN | Needs.TOKEN_FISHER,
    "Rademacher probes, Yao et al. 2020 (PyHessian), eq. 9",
)
def hutchinson_diag(weight: Tensor, stats: WeightStats) -> Tensor:
    """Absolute diagonal of the Hessian of the loss, by `--probes` random signs; exact for the first places.

    Shape of `weight`. What is exact and what an estimate: see `finalists`.
    """
    assert stats.hessian is not None
    return stats.hessian.abs()


@metric("wanda", "|w| ‖x‖", Needs.INPUTS, "Sun et al. 2024, eq. 1")
def wanda(weight: Tensor, stats: WeightStats) -> Tensor:
    """Absolute value times the norm of what the weight reads; linear layers of the blocks only. Shape of `weight`."""
    assert stats.input_norm is not None
    return weight.abs() * stats.input_norm


GBLM_ALPHA = 100  # of the paper, and of the authors' code, where it is called scale


@metric(
    "gblm",
    "|w| (‖x‖ + 100 √(Σ_s (dL_s/dw)²))",
    Needs.INPUTS | Needs.FISHER,
    "GBLM-Pruner, Das et al. 2023, with the 2-norm over sequences",
)
def gblm(weight: Tensor, stats: WeightStats) -> Tensor:
    """Wanda with 100 times the norm over sequences of the gradient added; linear layers of the blocks only.

    Shape of `weight`.
    """
    assert stats.input_norm is not None and stats.fisher is not None
    return weight.abs() * (stats.input_norm + GBLM_ALPHA * (stats.sequences * stats.fisher).sqrt())


@metric("obs", "w² / d²", Needs.INPUT_GRAM, "SparseGPT, Frantar & Alistarh 2023, sections 3.2 and 3.3")
def optimal_brain_surgeon(weight: Tensor, stats: WeightStats) -> Tensor:
    """Squared output error after the rest of the row makes up for it; linear layers of the blocks only. Shape of `weight`.

    d is the diagonal of the upper Cholesky factor of the inverse of X Xᵀ, summed over all scoring tokens, with 1 % of its
    mean diagonal added to the diagonal before. Weights that read nothing but zeros have the score 0.
    """
    assert stats.input_factor is not None
    return (weight / stats.input_factor).square()


@metric("super_weight", "|x w| / typical |y|", Needs.SPIKES, "Yu et al. 2024, section 3.1")
def super_weight(weight: Tensor, stats: WeightStats) -> Tensor:
    """What a weight of an MLP's down projection adds to its out_feature's largest output y, over the size of usual outputs.

    x is what the weight reads at the token where |y| is largest; typical |y| is the median over tokens of the root mean
    square of the module's outputs. Shape of `weight`.
    """
    assert stats.spikes is not None
    return (weight * stats.spikes.inputs).abs_() / stats.spikes.typical


METRICS.add(
    ABLATION,
    Metric(
        ABLATION,
        "L(w = 0) - L",
        Needs.NOTHING,
        "exact",
        "Measured loss change of zeroing each weight alone, in nats per token, for the best `--candidates` of other metrics",
        score=None,
    ),
)
