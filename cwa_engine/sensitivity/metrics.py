"""The metrics: one function each, from a weight tensor and its gradient statistics to a score of the same shape.

g = dL/dw is the gradient of the mean token NLL over all scoring tokens; F is the mean over sequences s of (dL_s/dw)^2.
Imports without torch: tensors are used through their methods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from cwa_engine.registry import Registry, first_sentence

if TYPE_CHECKING:
    from torch import Tensor


class Needs(Flag):
    """What a metric needs of the gradient pass."""

    NOTHING = 0
    GRADIENT = auto()
    FISHER = auto()  # one backward per sequence


@dataclass(frozen=True, slots=True)
class GradientStats:
    """Accumulated statistics of one parameter, float32, shaped like the parameter; None where not asked for."""

    gradient: Tensor | None = None  # g
    fisher: Tensor | None = None  # F

    def rows(self, start: int, stop: int) -> GradientStats:
        """The statistics of rows `start` to `stop` of the first axis, as views."""
        return GradientStats(*(None if t is None else t[start:stop] for t in (self.gradient, self.fisher)))


Score = Callable[["Tensor", GradientStats], "Tensor"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A scoring rule. `score` takes float32 weights and works on any block of rows of a parameter."""

    name: str
    formula: str
    needs: Needs
    source: str
    score: Score

    @property
    def summary(self) -> str:
        """What help texts and tables say of it."""
        return first_sentence(self.score)


METRICS: Registry[Metric] = Registry("metric")


def metric(name: str, formula: str, needs: Needs, source: str) -> Callable[[Score], Score]:
    """Register a scoring function under `name`."""

    def register(score: Score) -> Score:
        METRICS.add(name, Metric(name, formula, needs, source, score))
        return score

    return register


def needs_of(names: tuple[str, ...]) -> Needs:
    """What one gradient pass must collect so that all these metrics can be scored from it."""
    return reduce(or_, (METRICS[name].needs for name in names))


@metric("grad_x_weight", "|w g|", Needs.GRADIENT, "first-order Taylor, Molchanov et al. 2017")
def grad_x_weight(weight: Tensor, stats: GradientStats) -> Tensor:
    """First-order loss change of zeroing each weight, in nats per token. Shape of `weight`."""
    assert stats.gradient is not None
    return (weight * stats.gradient).abs_()


@metric("grad_squared", "F", Needs.FISHER, "diagonal empirical Fisher per sequence, SqueezeLLM, Kim et al. 2023")
def grad_squared(weight: Tensor, stats: GradientStats) -> Tensor:
    """Mean over sequences of the squared gradient of the sequence's mean NLL. Shape of `weight`."""
    assert stats.fisher is not None
    return stats.fisher


@metric("obd", "F w² / 2", Needs.FISHER, "LeCun et al. 1990 with the empirical Fisher for the Hessian")
def optimal_brain_damage(weight: Tensor, stats: GradientStats) -> Tensor:
    """Second-order loss change of zeroing each weight, in nats per token. Shape of `weight`."""
    assert stats.fisher is not None
    return stats.fisher * weight.square() / 2


@metric("taylor", "|F w² / 2 - g w|", Needs.GRADIENT | Needs.FISHER, "both orders together, LeCun et al. 1990, eq. 1")
def taylor(weight: Tensor, stats: GradientStats) -> Tensor:
    """Loss change of zeroing each weight by both orders, in nats per token. Shape of `weight`."""
    assert stats.gradient is not None and stats.fisher is not None
    return (stats.fisher * weight.square() / 2 - stats.gradient * weight).abs_()


@metric("magnitude", "|w|", Needs.NOTHING, "the usual pruning baseline, Han et al. 2015")
def magnitude(weight: Tensor, stats: GradientStats) -> Tensor:
    """Absolute value of each weight, which needs no text. Shape of `weight`."""
    return weight.abs()
