"""Damage curves of several runs: the change of the loss by k, of critical sets and of controls. torch-free.

A change of the loss in nats per token is the logarithm of the perplexity ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.statistics import Array, paired_delta
from cwa_engine.records.differences import NATS, kind_of, other_settings, pairing
from cwa_engine.records.remeasured import CRITICAL, INTACT, Case, losses
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import DamagePoint, Separation

LEADING, MEDIAN = "leading draw", "median draw"
Interval = tuple[float, float, float]  # the figure, and the ends of its 95 % interval


@dataclass(frozen=True, slots=True)
class DamageLevel:
    """A point of a damage curve: the natural logarithm of the perplexity ratio, with its 95 % interval.

    `selection` is "critical" or the name of a control; of a control `figure` tells whether it is the draw that came out ahead
    of the others, on `texts` texts, or the median of all draws, without an interval; `texts` is None where each of these was
    measured on texts of its own, as in all runs but those of early versions. `bits_per_byte` is the same change for models
    whose tokens differ. None for what is not known or not finite.
    """

    run: str
    metric: str
    perturbation: str
    k: int
    selection: str
    figure: str  # "", LEADING or MEDIAN
    log_ratio: float | None  # nats per token
    low: float | None
    high: float | None
    bits_per_byte: float | None
    texts: int | None
    collapsed: bool  # a loss was not finite


@dataclass(frozen=True, slots=True)
class DamageDifference:
    """How much more the first run's critical set raises the loss than the second's.

    Where both runs measured the same texts it is paired, text by text, with the interval of a run's own changes. Otherwise
    half its interval is the root of the sum of squares of both halves. `reasons` say why it is no fair comparison, and are
    empty unless the difference was forced.
    """

    metric: str
    perturbation: str
    k: int
    first: str
    second: str
    difference: float
    low: float
    high: float
    texts: int  # of the first run
    unit: str = NATS  # or BITS
    paired: bool = True
    reasons: tuple[str, ...] = ()

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def damage_levels(report: RunReport, metric: str | None = None, k: int | None = None) -> Iterator[DamageLevel]:
    """Every critical set of a run, and of each of its controls the leading and the median draw."""
    for group in report.summary.damage:
        if metric not in (None, group.metric) or k not in (None, group.k) or group.critical is None:
            continue
        yield _critical(report, group.critical)
        for control in group.controls:
            yield from _control(report, control)


def _critical(report: RunReport, point: DamagePoint) -> DamageLevel:
    known = point.collapsed_at is None and math.isfinite(point.delta_nll)
    change, low, high = (point.delta_nll, point.delta_low, point.delta_high) if known else (None, None, None)
    return DamageLevel(
        report.run_id, point.metric, point.perturbation, point.k, CRITICAL, "", change, _finite(low), _finite(high),
        _in_bits(report, change), point.sequences, not known,
    )  # fmt: skip


def _control(report: RunReport, control: Separation) -> Iterator[DamageLevel]:
    key = report.run_id, control.metric, control.perturbation, control.k, control.control
    texts = control.largest_texts or report.texts.damage or report.texts.evaluation
    # In early versions all draws were measured on the same texts.
    together = control.texts if control.largest_texts is None else None
    low, high = _finite(control.largest_low), _finite(control.largest_high)
    largest, median = _finite(control.largest), _finite(control.median)
    yield DamageLevel(*key, LEADING, largest, low, high, _in_bits(report, largest), texts, largest is None)
    yield DamageLevel(*key, MEDIAN, median, None, None, _in_bits(report, median), together, median is None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _in_bits(report: RunReport, change: float | None) -> float | None:
    """A change in nats per token as one in bits per byte: tokens and bytes are those of the baseline."""
    if change is None or report.baseline.bits_per_byte is None or not report.baseline.nll > 0:
        return None
    return change * _bits_per_nat(report)


def _bits_per_nat(report: RunReport) -> float:
    """Bits per byte for each nat per token, by the tokens and bytes of the baseline."""
    assert report.baseline.bits_per_byte is not None
    return report.baseline.bits_per_byte / report.baseline.nll


def damage_differences(
    first: RunReport, second: RunReport, metric: str | None = None, k: int | None = None, *, force: bool = False
) -> Iterator[DamageDifference]:
    """Critical sets of the same metric, perturbation and k; with `force` also those that were not measured alike."""
    if not (first.summary.damage and second.summary.damage):
        return
    how, settings = pairing(first, second), other_settings(first, second)
    if how.reasons and not force:
        return
    one, other = CriticalLosses.of(first), CriticalLosses.of(second)
    for case in one.cases:
        if case not in other.cases or metric not in (None, case.metric) or k not in (None, case.k):
            continue
        reasons = how.reasons + settings.get(kind_of(case.perturbation), ())
        if how.paired and how.unit == NATS and not np.array_equal(one.tokens, other.tokens):
            reasons += ("other tokens of the same texts",)
        if reasons and not force:
            continue
        factors = (1.0, 1.0) if how.unit == NATS else (_bits_per_nat(first), _bits_per_nat(second))
        between = _paired if how.paired else _unpaired
        difference, low, high = between(one, other, case, factors)
        if math.isfinite(difference) and case.k is not None:
            yield DamageDifference(
                case.metric, case.perturbation, case.k, first.run_id, second.run_id, difference, low, high,
                len(one.tokens), how.unit, how.paired, reasons,
            )  # fmt: skip


@dataclass(frozen=True)
class CriticalLosses:
    """What every critical set of a run changes the loss of each text by."""

    tokens: Array  # scored tokens of each text
    cases: Mapping[Case, Array]  # changes of the NLL sum of each text, in nats

    @classmethod
    def of(cls, report: RunReport) -> CriticalLosses:
        intact, cases = losses([row for row in report.evaluations if row.selection in (INTACT, CRITICAL)])
        return cls(intact.tokens, {case: of.evaluation.nll_sums - intact.nll_sums for case, of in cases.items()})


def _paired(one: CriticalLosses, other: CriticalLosses, case: Case, factors: tuple[float, float]) -> Interval:
    """Of the same texts. Each run's mean is over its own tokens; a text counts as much as it has of the first's."""
    share = one.tokens.sum() / other.tokens.sum()
    return paired_delta(factors[0] * one.cases[case], factors[1] * share * other.cases[case], one.tokens)


def _unpaired(one: CriticalLosses, other: CriticalLosses, case: Case, factors: tuple[float, float]) -> Interval:
    nothing = [np.zeros_like(of.tokens) for of in (one, other)]
    (a, a_low, _), (b, b_low, _) = (
        paired_delta(factor * of.cases[case], zeros, of.tokens)
        for factor, of, zeros in zip(factors, (one, other), nothing, strict=True)
    )
    reach = math.hypot(a - a_low, b - b_low)
    return a - b, a - b - reach, a - b + reach
