"""The metrics. Each is one function that maps a weight tensor and its statistics to scores of the same shape.

Notation. L is the mean NLL over all scored tokens and g = dL/dw its gradient. l_t is the NLL of token t and F the mean over
tokens of (dl_t/dw)², estimated with random signs (see `sensitivity.totals`). L_s is the mean NLL of sequence s, and n the
number of sequences. For a linear layer y = W x + b, ‖x‖² is, for each in_feature, the mean over sequences of the sum over
tokens of x².

This module imports without torch: it uses tensors through their methods only.
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
    """The statistics of the scoring texts that a metric needs."""

    NOTHING = 0
    GRADIENT = auto()
    FISHER = auto()  # the gradient of each sequence's mean NLL, squared
    TOKEN_FISHER = auto()  # the gradient of each sequence's NLL with random signs, squared: one more backward pass
    HESSIAN = auto()  # two more passes per probe
    INPUTS = auto()  # inputs of linear layers; the metric then ranks only their weights in the decoder blocks
    INPUT_GRAM = auto()  # X Xᵀ of each linear layer, [in_features, in_features]; ranks the same weights
    SPIKES = auto()  # largest outputs of down projections; the metric then ranks only their weights

    @property
    def backward(self) -> bool:
        """Whether gradients of first order are needed."""
        return bool(self & (Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER))

    @property
    def squares(self) -> bool:
        """Whether gradients are squared, so that each sequence needs a gradient of its own."""
        return bool(self & (Needs.FISHER | Needs.TOKEN_FISHER))

    @property
    def activations(self) -> bool:
        """Whether inputs or outputs of linear layers are needed."""
        return bool(self & (Needs.INPUTS | Needs.INPUT_GRAM | Needs.SPIKES))


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes over the scoring texts. The work of a backward pass is that of two forward passes."""

    forward: int
    backward: int

    @property
    def work(self) -> int:
        """In forward passes."""
        return self.forward + 2 * self.backward

    def __str__(self) -> str:
        """`1 forward and 2 backward passes`, `no pass`"""
        if not self.forward:
            return "no pass"
        both = f"{self.forward} forward and {self.backward} backward" if self.backward else f"{self.forward} forward"
        return f"{both} pass{'es' if self.forward + self.backward > 1 else ''}"


class LargestOutputs(Protocol):
    """A down projection at the tokens where its out_features have their largest outputs; see `sensitivity.spikes`."""

    @property
    def inputs(self) -> Tensor:
        """The input x of each weight there, shaped like the stored weights."""

    @property
    def typical(self) -> float:
        """The typical size of outputs: the median over tokens of their root mean square."""

    def rows(self, start: int, stop: int) -> LargestOutputs:
        """The same for rows `start` to `stop` of the first stored axis."""

    def numbered(self, part: int, parts: int) -> Any:
        """The same with text numbers of the whole list, from which the texts were dealt in turn to `parts` parts."""

    def joined(self, other: Any) -> Any:
        """For each out_feature the larger of these outputs and of those on other texts."""


@dataclass(frozen=True, slots=True)
class WeightStats:
    """Accumulated statistics of one parameter, in float32 or better; None if no metric needs them.

    Gradients have the shape of the stored parameter. Statistics of a feature have its length along the in axis or the out
    axis and length 1 along the other, so that they can be multiplied with the weights.
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
        """Whether inputs were recorded, which is done for linear layers only."""
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
            elif tensor is not None and len(tensor) > 1:  # length 1: the same for all rows
                sliced[name] = tensor[start:stop]
        spikes = self.spikes.rows(start, stop) if self.spikes else None
        return dataclasses.replace(self, **sliced, spikes=spikes)


@dataclass(frozen=True, slots=True)
class PartShares:
    """The shares of disjoint parts of the scoring texts, of all tokens and of all sequences. Each tuple adds up to 1."""

    tokens: tuple[float, ...]
    sequences: tuple[float, ...]

    @classmethod
    def of(cls, parts: Sequence[Sequence[TokenSequence]]) -> PartShares:
        tokens = [sum(sequence.scored_tokens for sequence in part) for part in parts]
        return cls(
            tuple(count / sum(tokens) for count in tokens),
            tuple(len(part) / sum(map(len, parts)) for part in parts),
        )


# Statistics of two parts of the texts that can be joined to those of both.
JOINABLE_NEEDS = Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER | Needs.INPUTS | Needs.SPIKES


def joined(by_part: Sequence[Mapping[str, WeightStats]], parts: PartShares) -> dict[str, WeightStats]:
    """The statistics of all texts from those of two parts. Overwrites the first part's tensors."""
    first, second = by_part
    return {name: _joined(stats, second[name], parts) for name, stats in first.items()}


def _joined(first: WeightStats, second: WeightStats, parts: PartShares) -> WeightStats:
    # A routed expert may have read no token of one part, and then has no spikes there.
    spikes = [of.spikes.numbered(part, 2) for part, of in enumerate((first, second)) if of.spikes]
    return WeightStats(
        gradient=_weighted(first.gradient, second.gradient, parts.tokens),
        token_fisher=_weighted(first.token_fisher, second.token_fisher, parts.tokens),
        fisher=_weighted(first.fisher, second.fisher, parts.sequences),
        input_norm=_joined_norm(first.input_norm, second.input_norm, parts.sequences),
        spikes=reduce(lambda one, other: one.joined(other), spikes) if spikes else None,
        sequences=first.sequences + second.sequences,
    )


def _weighted(first: Tensor | None, second: Tensor | None, shares: tuple[float, ...]) -> Tensor | None:
    """The weighted sum of two means, written into the first; None if no metric needs it."""
    return None if first is None or second is None else first.mul_(shares[0]).add_(second, alpha=shares[1])


def _joined_norm(first: Tensor | None, second: Tensor | None, shares: tuple[float, ...]) -> Tensor | None:
    """The root of a weighted mean of squares; None if one part has no inputs."""
    if first is None or second is None:
        return None
    return (first.square() * shares[0] + second.square() * shares[1]).sqrt()


Score = Callable[["Tensor", WeightStats], "Tensor"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A scoring rule. `score` takes float32 weights, and may get any range of rows of a parameter.

    `summary` is its sentence in help texts and tables.
    """

    name: str
    formula: str
    needs: Needs
    source: str
    summary: str
    score: Score | None  # None for ablation, which measures weights one by one, see `questions.ablation`

    def passes(self, probes: int) -> Passes:
        """What scoring takes with gradients of all weights in memory. Exact entries of a Hessian's diagonal come on top."""
        plain, signed = self.needs & (Needs.GRADIENT | Needs.FISHER), self.needs & Needs.TOKEN_FISHER
        forward, backward = int(self.needs is not Needs.NOTHING), bool(plain) + bool(signed)
        if Needs.HESSIAN in self.needs:  # the gradient, to be differentiated again, and a product for each probe
            return Passes(forward + 1 + probes, backward + 1 + probes)
        return Passes(forward, backward)

    @property
    def linear_only(self) -> bool:
        """Whether it ranks only weights of linear layers, see `activations.linear_parameters`."""
        return self.needs.activations

    @property
    def down_projections_only(self) -> bool:
        """Whether it ranks only weights of down projections."""
        return Needs.SPIKES in self.needs

    @property
    def restriction(self) -> str:
        """The modules whose weights it ranks, in words; empty for a metric that ranks all weights."""
        return (
            "down projections"
            if self.down_projections_only
            else "linear layers in the decoder blocks"
            if self.linear_only
            else ""
        )

    def ranks(self, stats: WeightStats) -> bool:
        """Whether it ranks the weights of the parameter with these statistics."""
        if self.down_projections_only:
            return stats.spikes is not None
        return stats.is_linear or not self.linear_only


METRICS: Registry[Metric] = Registry("metric")
ABLATION = "ablation"
# Without other metrics, these name the candidates of ablation, in this order, round after round. Two thirds of the turns go
# to gradients: with 100 candidates on Gemma 3 270M this finds 10 of the 10 most harmful of 155 measured weights, equal turns 9.
CANDIDATE_TURNS = ("grad_x_weight", "taylor", "super_weight", "grad_x_weight", "taylor", "magnitude")
CANDIDATE_METRICS = tuple(dict.fromkeys(CANDIDATE_TURNS))


def metric(name: str, formula: str, needs: Needs, source: str) -> Callable[[Score], Score]:
    """Register a scoring function under `name`."""

    def register(score: Score) -> Score:
        METRICS.add(name, Metric(name, formula, needs, source, first_sentence(score), score))
        return score

    return register


def needs_of(names: tuple[str, ...]) -> Needs:
    """The statistics that these metrics need together."""
    return reduce(or_, (METRICS[name].needs for name in names), Needs.NOTHING)


@metric("grad_x_weight", "|w g|", Needs.GRADIENT, "first-order Taylor, Molchanov et al. 2017")
def grad_x_weight(weight: Tensor, stats: WeightStats) -> Tensor:
    """Predicted loss change of zeroing each weight, first-order Taylor, in nats per token. Shape of `weight`.

    L(w = 0) - L = -w g + O(w²). The score is its absolute value.
    """
    assert stats.gradient is not None
    return (weight * stats.gradient).abs_()


@metric("grad_squared", "mean_s (dL_s/dw)²", Needs.FISHER, "Fisher per sequence, SqueezeLLM, Kim et al. 2023")
def grad_squared(weight: Tensor, stats: WeightStats) -> Tensor:
    """Mean over sequences of the squared gradient of the sequence's mean NLL (empirical Fisher). Shape of `weight`.

    A weight scores high if the loss of single sequences reacts to it, even if their gradients cancel in the mean.
    """
    assert stats.fisher is not None
    return stats.fisher


@metric("obd", "F w² / 2", Needs.TOKEN_FISHER, "LeCun et al. 1990 with the empirical Fisher per token for the Hessian")
def optimal_brain_damage(weight: Tensor, stats: WeightStats) -> Tensor:
    """Predicted loss change of zeroing each weight, second-order Taylor term, in nats per token. Shape of `weight`.

    At a minimum of L the change is w² H_ww / 2. The diagonal of the empirical Fisher, F, replaces that of the Hessian.
    """
    assert stats.token_fisher is not None
    return stats.token_fisher * weight.square() / 2


@metric(
    "taylor",
    "|F w² / 2 - g w|",
    Needs.GRADIENT | Needs.TOKEN_FISHER,
    "both orders together, LeCun et al. 1990, eq. 1",
)
def taylor(weight: Tensor, stats: WeightStats) -> Tensor:
    """Predicted loss change of zeroing each weight, Taylor terms of both orders, in nats per token. Shape of `weight`.

    L(w = 0) - L ≈ -g w + w² H_ww / 2, with the Fisher diagonal F for H_ww. The score is its absolute value.
    """
    assert stats.gradient is not None and stats.token_fisher is not None
    return (stats.token_fisher * weight.square() / 2 - stats.gradient * weight).abs_()


@metric("magnitude", "|w|", Needs.NOTHING, "the usual pruning baseline, Han et al. 2015")
def magnitude(weight: Tensor, stats: WeightStats) -> Tensor:
    """Absolute value of each weight; needs no texts. Shape of `weight`."""
    return weight.abs()


@metric(
    "hutchinson_diag",
    "|diag H|",
    Needs.HESSIAN | Needs.TOKEN_FISHER,
    "Rademacher probes, Yao et al. 2020 (PyHessian), eq. 9",
)
def hutchinson_diag(weight: Tensor, stats: WeightStats) -> Tensor:
    """Absolute diagonal of the Hessian of the loss, estimated with `--probes` random vectors; exact for the first places.

    For z of random signs the mean of z · (H z) is diag H. `sensitivity.finalists` says which places are computed exactly.
    Shape of `weight`.
    """
    assert stats.hessian is not None
    return stats.hessian.abs()


@metric("wanda", "|w| ‖x‖", Needs.INPUTS, "Sun et al. 2024, eq. 1")
def wanda(weight: Tensor, stats: WeightStats) -> Tensor:
    """Absolute value times the norm of the weight's input; linear layers of the blocks only. Shape of `weight`.

    |w| ‖x‖ is the norm of the weight's contribution to its output over the scoring texts.
    """
    assert stats.input_norm is not None
    return weight.abs() * stats.input_norm


GBLM_ALPHA = 100  # α of the paper; the authors' code calls it scale


@metric(
    "gblm",
    "|w| (‖x‖ + 100 √(Σ_s (dL_s/dw)²))",
    Needs.INPUTS | Needs.FISHER,
    "GBLM-Pruner, Das et al. 2023, with the 2-norm over sequences",
)
def gblm(weight: Tensor, stats: WeightStats) -> Tensor:
    """Wanda plus 100 times |w| times the gradient's norm over sequences; linear layers of the blocks only.

    Shape of `weight`.
    """
    assert stats.input_norm is not None and stats.fisher is not None
    return weight.abs() * (stats.input_norm + GBLM_ALPHA * (stats.sequences * stats.fisher).sqrt())


@metric("obs", "w² / d²", Needs.INPUT_GRAM, "SparseGPT, Frantar & Alistarh 2023, sections 3.2 and 3.3")
def optimal_brain_surgeon(weight: Tensor, stats: WeightStats) -> Tensor:
    """Squared output error of removing the weight if later weights of the row compensate; linear layers of the blocks only.

    Shape of `weight`. d is the diagonal of the upper Cholesky factor of (X Xᵀ + λ I)⁻¹, with X Xᵀ summed over all scoring
    tokens and λ 1 % of its mean diagonal. Weights whose input is always zero score 0.
    """
    assert stats.input_factor is not None
    return (weight / stats.input_factor).square()


@metric("super_weight", "|x w| / typical |y|", Needs.SPIKES, "Yu et al. 2024, section 3.1")
def super_weight(weight: Tensor, stats: WeightStats) -> Tensor:
    """Contribution of a down projection's weight to its out_feature's largest output y, relative to typical outputs.

    x is the weight's input at the token where |y| is largest. Typical |y| is the median over tokens of the root mean square
    of the module's outputs. Super weights make single huge outputs, and zeroing one removes its output. Shape of `weight`.
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
