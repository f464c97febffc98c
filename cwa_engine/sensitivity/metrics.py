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
from typing import TYPE_CHECKING

from cwa_engine.registry import Registry, first_sentence

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
    OUTPUTS = auto()  # what linear layers write

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
        return bool(self & (Needs.INPUTS | Needs.INPUT_GRAM | Needs.OUTPUTS))


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
    input_max: Tensor | None = None  # max |x| of each in_feature
    input_factor: Tensor | None = None  # d of each in_feature, see `obs`
    output_max: Tensor | None = None  # max |y| of each out_feature
    sequences: int = 0  # n

    @property
    def is_linear(self) -> bool:
        """Whether activations were recorded, as they are for linear layers alone."""
        return any(t is not None for t in (self.input_norm, self.input_factor, self.input_max))

    def rows(self, start: int, stop: int) -> WeightStats:
        """The statistics of rows `start` to `stop` of the first stored axis, as views."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "sequences"}
        sliced = {}
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dim() == 0:
                sliced[name] = tensor.reshape(1)
            elif tensor is not None and len(tensor) > 1:  # of length one: the same for all rows
                sliced[name] = tensor[start:stop]
        return dataclasses.replace(self, **sliced)


@dataclass(frozen=True, slots=True)
class Parts:
    """The shares of two disjoint parts of the scoring texts: by tokens and by sequences, each of which add up to one."""

    tokens: tuple[float, ...]
    sequences: tuple[float, ...]

    @classmethod
    def of(cls, parts: Sequence[Sequence[TokenSequence]]) -> Parts:
        tokens = [sum(sequence.scored_tokens for sequence in part) for part in parts]
        return cls(
            tuple(count / sum(tokens) for count in tokens),
            tuple(len(part) / sum(map(len, parts)) for part in parts),
        )


# What statistics of parts can be joined of.
JOINABLE = Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER | Needs.INPUTS | Needs.OUTPUTS


def joined(by_part: Sequence[Mapping[str, WeightStats]], parts: Parts) -> dict[str, WeightStats]:
    """The statistics of all texts from those of two parts, whose tensors are used up."""
    first, second = by_part
    return {name: _joined(stats, second[name], parts) for name, stats in first.items()}


def _joined(first: WeightStats, second: WeightStats, parts: Parts) -> WeightStats:
    found: dict[str, Tensor] = {}
    if first.gradient is not None and second.gradient is not None:
        found["gradient"] = first.gradient.mul_(parts.tokens[0]).add_(second.gradient, alpha=parts.tokens[1])
    if first.fisher is not None and second.fisher is not None:
        found["fisher"] = first.fisher.mul_(parts.sequences[0]).add_(second.fisher, alpha=parts.sequences[1])
    if first.token_fisher is not None and second.token_fisher is not None:
        found["token_fisher"] = first.token_fisher.mul_(parts.tokens[0]).add_(
            second.token_fisher, alpha=parts.tokens[1]
        )
    if first.input_norm is not None and second.input_norm is not None:  # root of a mean over sequences
        squares = first.input_norm.square() * parts.sequences[0] + second.input_norm.square() * parts.sequences[1]
        found["input_norm"] = squares.sqrt()
    for name in ("input_max", "output_max"):
        one, other = getattr(first, name), getattr(second, name)
        if one is not None:
            found[name] = one.maximum(other)
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


METRICS: Registry[Metric] = Registry("metric")
ABLATION = "ablation"


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


@metric("super_weight", "max |x| max |y|", Needs.INPUTS | Needs.OUTPUTS, "Yu et al. 2024, section 3.1")
def super_weight(weight: Tensor, stats: WeightStats) -> Tensor:
    """Largest input times largest output that the weight links; linear layers only. Shape of `weight`."""
    assert stats.input_max is not None and stats.output_max is not None
    return (stats.input_max * stats.output_max).expand_as(weight)


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
