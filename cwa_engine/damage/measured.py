"""Losses of a changed model beside those of the intact one, and what is published of them.

torch-free: a run makes these from a model, `records.verification` from the files of a run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.statistics import paired_delta
from cwa_engine.damage.elimination import ELIMINATION, SAMPLE_TEXTS, looks_of, rounds_of
from cwa_engine.damage.treatments import Comparison, Treatment
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.rows import DamagePoint, exp

if TYPE_CHECKING:  # it comes with torch
    from cwa_engine.damage.patch import Receipt

Places = NDArray[np.int64]


def sample_places(texts: int) -> Places:
    """Which of so many evaluation texts are the sample. [at most SAMPLE_TEXTS], ascending"""
    return np.unique(np.linspace(0, texts - 1, min(SAMPLE_TEXTS, texts)).round().astype(np.int64))


@functools.cache
def text_order(texts: int) -> tuple[int, ...]:
    """So many evaluation texts in the order by which measurements grow: the first 2, 4, 8 ... are spread over all of them."""
    sample = sample_places(texts).tolist()
    order = _spread(sample, rounds_of(texts))
    return (*order, *_spread(sorted({*range(texts)} - {*order}), [look - len(order) for look in looks_of(texts)]))


def _spread(places: Sequence[int], counts: Sequence[int]) -> list[int]:
    """These places in an order whose first so many are evenly spaced, for each of these ascending counts."""
    parts = [list(places)]
    for count in reversed(counts[:-1]):
        whole = parts[0]
        parts.insert(0, [whole[(2 * number + 1) * len(whole) // (2 * count)] for number in range(count)])
    return list(dict.fromkeys(place for part in parts for place in part))


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

    def part(self, places: Places) -> Measured:
        """What was measured on these texts."""
        return Measured(places, self.on(places), self.collapsed_at, self.receipts)

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
    sample: Places  # the texts of an elimination's last round
    rounding: float = 0.0  # nats per token: what an edit that should change nothing changes
    rule: str = ELIMINATION  # by which draws of controls were measured

    def first(self, texts: int) -> Places:
        """The first so many texts by the order in which measurements grow. Ascending"""
        return np.array(sorted(text_order(len(self.intact.tokens))[:texts]), dtype=np.int64)

    def on(self, places: Places) -> Evaluation:
        """The intact model's loss on these texts."""
        return Evaluation(self.intact.nll_sums[places], self.intact.tokens[places])

    def delta(self, measured: Measured) -> tuple[float, float, float]:
        """Paired change of NLL on the texts that were measured, with its 95 % interval."""
        intact = self.on(measured.places)
        return paired_delta(measured.evaluation.nll_sums, intact.nll_sums, intact.tokens)

    def size(self, measured: Measured, texts: int) -> float:
        """How far the loss moved on the first so many texts, in nats per token; NaN or infinite where the model collapsed."""
        places = self.first(texts)
        intact = self.on(places)
        return abs(float((measured.on(places).nll_sums - intact.nll_sums).sum() / intact.tokens.sum()))

    def spread(self, measured: Measured, texts: int) -> float:
        """The root mean square of the changes of the first so many texts, each in nats per token, over their tokens.

        A text weighs as much as in the mean loss, so this is never less than the change of that.
        """
        places = self.first(texts)
        intact = self.on(places)
        changes = (measured.on(places).nll_sums - intact.nll_sums) / intact.tokens
        return float(np.sqrt((intact.tokens * changes**2).sum() / intact.tokens.sum()))


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
        """See `DamagePoint.size`."""
        return self.point.size


@dataclass(frozen=True)
class MeasuredComparison:
    """A critical set on all texts, and the draws of its controls on as many as an elimination asks for."""

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
