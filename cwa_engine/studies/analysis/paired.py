"""Damage text by text, in a unit that all models of a study share. torch-free.

Changes are sums over texts: x_s is what text s adds to the change of the loss, w_s its share of the tokens. The change on all
texts is the sum of x_s, and with text s left out it is (sum x - x_s) / (1 - w_s), which is what the jackknife needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.statistics import paired_delta, t975
from cwa_engine.records.remeasured import CRITICAL, INTACT, losses
from cwa_engine.records.run_report import RunReport

Array = NDArray[np.float64]
Key = tuple[str, int, str]  # metric, k, perturbation

NATS, BITS = "nats per token", "bits per byte"


@dataclass(frozen=True)
class Unit:
    """In what the damage of several models is told. `name` is empty where they have none in common, and `why` says why."""

    name: str
    why: str
    paired: bool  # whether text s of one run is text s of every other


@dataclass(frozen=True)
class TextChanges:
    """What a critical set does to the loss of each text, see above. [texts]"""

    changes: Array
    shares: Array

    @property
    def total(self) -> float:
        return float(self.changes.sum())

    @property
    def left_out(self) -> Array:
        """The change of the loss with each text left out in turn. [texts]"""
        return (self.total - self.changes) / (1 - self.shares)


def common_unit(reports: Sequence[RunReport]) -> Unit:
    """Nats per token where all made the same tokens of the same texts, else bits per byte of the same texts."""
    first = reports[0]
    for other in reports[1:]:
        if other.texts.evaluation_sha256 != first.texts.evaluation_sha256 or other.texts.damage != first.texts.damage:
            return Unit("", f"{other.model.name} was measured on other texts than {first.model.name}", False)
    if len({_tokens(report) for report in reports}) == 1:
        return Unit(NATS, "", True)
    if without := [report.model.name for report in reports if report.baseline.bits_per_byte is None]:
        return Unit("", f"the tokens differ, and {', '.join(without)} has no bits per byte", False)
    uncut = all(not report.texts.truncated and not report.texts.packed for report in reports)
    cut = "" if uncut else "; texts are cut after so many tokens, so that the models did not read the same bytes"
    return Unit(BITS, f"the models do not make the same tokens of the texts{cut}", uncut)


def _tokens(report: RunReport) -> tuple[object, ...]:
    baseline, texts = report.baseline, report.texts
    made = baseline.tokens, baseline.scored_bytes, baseline.vocabulary, baseline.protocol
    return *made, texts.bos, texts.seq_len, texts.packed


def scale_of(report: RunReport, unit: str) -> float:
    """What a change in nats per token is multiplied by."""
    if unit == NATS:
        return 1.0
    baseline = report.baseline
    assert baseline.bits_per_byte is not None
    return baseline.bits_per_byte / baseline.nll if baseline.nll > 0 else math.nan


def critical_changes(report: RunReport, unit: str) -> dict[Key, TextChanges]:
    """Every critical set of a run, text by text."""
    rows = [row for row in report.evaluations if row.selection in (INTACT, CRITICAL)]
    if not rows:
        return {}
    intact, cases = losses(rows)
    shares = intact.tokens / intact.tokens.sum()
    scale = scale_of(report, unit) / intact.tokens.sum()
    return {
        (case.metric, case.k, case.perturbation): TextChanges(
            (measured.evaluation.nll_sums - intact.nll_sums) * scale, shares
        )
        for case, measured in cases.items()
        if case.k is not None and len(measured.places) == len(shares)
    }


def difference(first: TextChanges, second: TextChanges) -> tuple[float, float, float]:
    """How much more the first changes the loss than the second on the same texts, with its 95 % interval.

    Bytes of a text are taken to be in proportion to its tokens, in the interval alone.
    """
    return paired_delta(first.changes, second.changes, (first.shares + second.shares) / 2)


def log_ratio(first: TextChanges, second: TextChanges) -> tuple[float, float, float] | None:
    """Logarithm of first over second with its 95 % interval, by the jackknife; None where one is not positive throughout."""
    logs = [_logs(changes) for changes in (first, second)]
    if logs[0] is None or logs[1] is None:
        return None
    value = math.log(first.total / second.total)
    n = len(first.changes)
    without = logs[0] - logs[1]
    reach = (1 + 2 / n) * t975(n - 1) * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return value, value - reach, value + reach


def log_covariance(members: Sequence[TextChanges]) -> Array | None:
    """Covariance of the logarithms of several changes on the same texts, by the jackknife. [members, members]

    None where a change is not positive whichever text is left out, so that it has no logarithm.
    """
    logs = [_logs(member) for member in members]
    rows = [row for row in logs if row is not None]
    if len(rows) < len(logs):
        return None
    without = np.array(rows)  # [members, texts]
    centred = without - without.mean(axis=1, keepdims=True)
    n = without.shape[1]
    covariance: Array = (n - 1) / n * centred @ centred.T
    return covariance


def _logs(member: TextChanges) -> Array | None:
    if len(member.changes) < 2 or not np.isfinite(member.changes).all():
        return None
    without = member.left_out
    if min(without.min(), member.total) <= 0:
        return None
    logs: Array = np.log(without)
    return logs
