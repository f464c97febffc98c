"""Losses of a changed model beside those of the intact one, and what is published of them.

torch-free: a run makes these from a model, `records.verification` from the files of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.statistics import paired_delta
from cwa_engine.damage.treatments import Comparison, Treatment
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.rows import DamagePoint, exp

if TYPE_CHECKING:  # it comes with torch
    from cwa_engine.damage.patch import Receipt

SAMPLE_TEXTS = 8  # evenly spaced, on which the draws of controls are ranked

Places = NDArray[np.int64]


def sample_places(texts: int) -> Places:
    """Which of so many evaluation texts the draws of controls are ranked on. [at most SAMPLE_TEXTS], ascending"""
    return np.unique(np.linspace(0, texts - 1, min(SAMPLE_TEXTS, texts)).round().astype(np.int64))


@dataclass(frozen=True)
class Measured:
    """A loss on some of the evaluation texts, while some weights were changed."""

    places: Places
    evaluation: Evaluation
    collapsed_at: str | None = None  # the first layer whose output was not finite
    receipts: tuple[Receipt, ...] = ()

    def on(self, places: Places) -> Evaluation:
        """The part of it that is of these texts."""
        where = np.searchsorted(self.places, places)
        return Evaluation(self.evaluation.nll_sums[where], self.evaluation.tokens[where])

    def with_others(self, other: Measured) -> Measured:
        """Together with what was measured on other texts under the same change."""
        places = np.concatenate([self.places, other.places])
        order = np.argsort(places)
        sums = np.concatenate([self.evaluation.nll_sums, other.evaluation.nll_sums])
        tokens = np.concatenate([self.evaluation.tokens, other.evaluation.tokens])
        return Measured(
            places[order],
            Evaluation(sums[order], tokens[order]),
            self.collapsed_at or other.collapsed_at,
            self.receipts or other.receipts,
        )


@dataclass(frozen=True)
class Reference:
    """What a changed model is compared with: the intact one's loss on every evaluation text."""

    intact: Evaluation
    sample: Places  # the texts on which draws of controls are ranked
    rounding: float = 0.0  # nats per token: what an edit that should change nothing changes

    def on(self, places: Places) -> Evaluation:
        """The intact model's loss on these texts."""
        return Evaluation(self.intact.nll_sums[places], self.intact.tokens[places])

    def delta(self, measured: Measured) -> tuple[float, float, float]:
        """Paired change of NLL on the texts that were measured, with its 95 % interval."""
        intact = self.on(measured.places)
        return paired_delta(measured.evaluation.nll_sums, intact.nll_sums, intact.tokens)


class Figures(TypedDict):
    """The fields of a `DamagePoint` that follow from losses."""

    nll: float
    perplexity: float
    delta_nll: float
    delta_low: float
    delta_high: float
    perplexity_ratio: float
    sequences: int


def figures(reference: Reference, measured: Measured) -> Figures:
    """The fields of a `DamagePoint` that follow from losses."""
    delta, low, high = reference.delta(measured)
    return {
        "nll": measured.evaluation.nll,
        "perplexity": measured.evaluation.perplexity,
        "delta_nll": delta,
        "delta_low": low,
        "delta_high": high,
        "perplexity_ratio": exp(delta),
        "sequences": len(measured.places),
    }


@dataclass(frozen=True)
class Damaged:
    """A change of weights: what was measured, and what is published of it."""

    measured: Measured
    point: DamagePoint

    @property
    def size(self) -> float:
        """How far the loss moved, in nats per token; infinite where the model collapsed."""
        return abs(self.point.delta_nll) if math.isfinite(self.point.delta_nll) else math.inf


@dataclass(frozen=True)
class MeasuredComparison:
    """A critical set on all texts, the draws of its controls on the sample, of each control the one that did most on all."""

    comparison: Comparison
    treatment: Treatment
    critical: Damaged | None  # None for the position test, which leaves the critical set as it is
    draws: dict[str, list[Damaged]]  # by control, in the order of the draws
    elsewhere: tuple[Damaged, ...] = ()

    @property
    def group(self) -> tuple[str, int, str]:
        """What a critical set and its controls have in common in tables."""
        return self.comparison.metric, self.comparison.k, self.treatment.label

    @property
    def damaged(self) -> list[Damaged]:
        """All measurements, in the order of tables."""
        return [*filter(None, [self.critical]), *(d for drawn in self.draws.values() for d in drawn), *self.elsewhere]
