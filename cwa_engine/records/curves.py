"""Damage curves of several runs: the change of the loss by k, of critical sets and of controls. torch-free.

A change of the loss in nats per token is the logarithm of the perplexity ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.statistics import paired_delta
from cwa_engine.damage.measured import Measured
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.records.differences import kind_of, other_measuring, other_settings
from cwa_engine.records.remeasured import CRITICAL, INTACT, Case, losses
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import DamagePoint, Separation

WORST, MEDIAN = "worst draw", "median draw"


@dataclass(frozen=True, slots=True)
class DamageLevel:
    """A point of a damage curve: the natural logarithm of the perplexity ratio, with its 95 % interval.

    `selection` is "critical" or the name of a control; of a control `figure` tells whether it is the draw that changes the
    loss most, on all texts, or the median of all draws, on a sample of the texts and without an interval. `bits_per_byte` is
    the same change for models whose tokens differ. None for what is not known or not finite.
    """

    run: str
    metric: str
    perturbation: str
    k: int
    selection: str
    figure: str  # "", WORST or MEDIAN
    log_ratio: float | None  # nats per token
    low: float | None
    high: float | None
    bits_per_byte: float | None
    texts: int
    collapsed: bool  # a loss was not finite


@dataclass(frozen=True, slots=True)
class DamageDifference:
    """How much more the first run's critical set raises the loss than the second's, in nats per token, text by text.

    Only of runs that measured the same texts in the same way. The interval is the paired one of a run's own changes.
    """

    metric: str
    perturbation: str
    k: int
    first: str
    second: str
    difference: float
    low: float
    high: float
    texts: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def damage_levels(report: RunReport, metric: str | None = None, k: int | None = None) -> Iterator[DamageLevel]:
    """Every critical set of a run, and of each of its controls the worst and the median draw."""
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
    texts = report.texts.damage or report.texts.evaluation
    low, high = _finite(control.largest_low), _finite(control.largest_high)
    largest, median = _finite(control.largest), _finite(control.median)
    yield DamageLevel(*key, WORST, largest, low, high, _in_bits(report, largest), texts, largest is None)
    yield DamageLevel(*key, MEDIAN, median, None, None, _in_bits(report, median), control.texts, median is None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _in_bits(report: RunReport, change: float | None) -> float | None:
    """A change in nats per token as one in bits per byte: tokens and bytes are those of the baseline."""
    baseline = report.baseline
    if change is None or baseline.bits_per_byte is None or not baseline.nll > 0:
        return None
    return change * baseline.bits_per_byte / baseline.nll


def damage_differences(
    first: RunReport, second: RunReport, metric: str | None = None, k: int | None = None
) -> Iterator[DamageDifference]:
    """Critical sets of the same metric, perturbation and k, where both runs measured the same texts in the same way."""
    if other_measuring(first, second) or not (first.summary.damage and second.summary.damage):
        return
    settings = other_settings(first, second)
    (intact, cases), (intact_other, others) = (_critical_losses(report) for report in (first, second))
    if not np.array_equal(intact.tokens, intact_other.tokens):
        return
    for case, measured in cases.items():
        if case not in others or metric not in (None, case.metric) or k not in (None, case.k):
            continue
        if kind_of(case.perturbation) in settings:
            continue
        ours = measured.evaluation.nll_sums - intact.nll_sums
        theirs = others[case].evaluation.nll_sums - intact_other.nll_sums
        difference, low, high = paired_delta(ours, theirs, intact.tokens)
        if math.isfinite(difference) and case.k is not None:
            yield DamageDifference(
                case.metric, case.perturbation, case.k, first.run_id, second.run_id, difference, low, high, len(ours)
            )


def _critical_losses(report: RunReport) -> tuple[Evaluation, dict[Case, Measured]]:
    """The losses of the intact model and of every critical set."""
    rows = [row for row in report.evaluations if row.selection in (INTACT, CRITICAL)]
    return losses(rows)
