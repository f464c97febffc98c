"""How well scores of metrics predict measured damage, with intervals, and which of two predicts better. numpy only.

The measured weights of a run are the sample: an interval says what other weights, drawn in the same way, would have given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.statistics import Array, mean_ranks, t975, widened
from cwa_engine.records.run_report import RunReport

_LEAST = 10  # weights, for an interval
_MOST_Z = 1 - 1e-9  # a correlation beyond has no logarithm


@dataclass(frozen=True)
class Sampled:
    """The measured weights of one run: what zeroing each changes the loss by, and what each metric says of it."""

    changes: Array  # |change of the loss|; infinite where it is not finite  [weights]
    scores: Mapping[str, Array]  # NaN for what a metric does not rank  [weights]

    @classmethod
    def of(cls, report: RunReport) -> Sampled:
        rows = report.predictions
        changes = np.array([abs(row.delta_nll) for row in rows], dtype=np.float64)
        names = [row.metric for row in report.fidelity]
        scores = np.array([row.scores for row in rows], dtype=np.float64).reshape(len(rows), len(names))
        return cls(
            np.where(np.isfinite(changes), changes, np.inf),
            {name: scores[:, place] for place, name in enumerate(names)},
        )

    def correlations(self, *metrics: str) -> list[Array] | None:
        """Of each metric: Spearman's rho over the weights that all of them rank, and with each of these left out.

        None where that is not defined: with fewer than ten weights, or with equal scores. [1 + weights]
        """
        both = np.all([np.isfinite(self.scores[name]) for name in metrics], axis=0)
        if both.sum() < _LEAST:
            return None
        found = [_with_each_left_out(self.scores[name][both], self.changes[both]) for name in metrics]
        return found if all(np.isfinite(values).all() for values in found) else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its standard error, and how many weights it is of."""

    value: float
    error: float
    weights: int

    def interval(self, comparisons: int = 1) -> tuple[float, float, float]:
        """(value, low, high): 95 % for all of so many comparisons together (Bonferroni)."""
        reach = t975(self.weights - 1) * self.error
        return widened((self.value, self.value - reach, self.value + reach), comparisons)


def correlation(sampled: Sampled, metric: str) -> tuple[float, float, float] | None:
    """Spearman's rho of scores and |changes of the loss| with its 95 % interval, on Fisher's z, by the jackknife."""
    if (found := sampled.correlations(metric)) is None:
        return None
    (values,) = found
    z = np.arctanh(np.clip(values, -_MOST_Z, _MOST_Z))
    reach = t975(len(z) - 2) * _jackknife(z[1:])
    return float(values[0]), math.tanh(z[0] - reach), math.tanh(z[0] + reach)


def estimate(sampled: Sampled, metric: str) -> Estimate | None:
    """Spearman's rho with its standard error."""
    found = sampled.correlations(metric)
    return _estimate(found[0]) if found else None


def advantage(sampled: Sampled, first: str, second: str) -> Estimate | None:
    """How much better the first metric predicts than the second, over the weights that both rank: rho minus rho."""
    found = sampled.correlations(first, second)
    return _estimate(found[0] - found[1]) if found else None


def over_models(of_models: Sequence[Sequence[Estimate]]) -> Estimate:
    """The mean over models, each the mean of its runs, whose errors are taken to be the same ones."""
    means = [
        Estimate(
            float(np.mean([run.value for run in runs])),
            float(np.mean([run.error for run in runs])),
            min(run.weights for run in runs),
        )
        for runs in of_models
    ]
    return Estimate(
        float(np.mean([mean.value for mean in means])),
        math.sqrt(sum(mean.error**2 for mean in means)) / len(means),
        min(mean.weights for mean in means),
    )


def _estimate(values: Array) -> Estimate:
    return Estimate(float(values[0]), _jackknife(values[1:]), len(values) - 1)


def _jackknife(without: Array) -> float:
    """Standard error, of the figures with each weight left out."""
    n = len(without)
    return math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))


def _with_each_left_out(first: Array, second: Array) -> Array:
    """Spearman's rho, then that without each pair in turn; NaN where a side is all equal. [1 + pairs]"""
    ranks = [mean_ranks(side) for side in (first, second)]
    without = [_ranks_without(side, of) for side, of in zip((first, second), ranks, strict=True)]
    together = _correlations(*(of[None, :] for of in ranks))
    return np.concatenate([together, _correlations(*without)])


def _ranks_without(values: Array, ranks: Array) -> Array:
    """Row i: the ranks of all others without value i. [n, n - 1]"""
    lower, equal = values[:, None] < values[None, :], values[:, None] == values[None, :]
    moved = ranks[None, :] - lower - equal / 2
    others: Array = moved[~np.eye(len(values), dtype=bool)].reshape(len(values), -1)
    return others


def _correlations(first: Array, second: Array) -> Array:
    """Pearson's correlation of each row. [rows]"""
    one, other = (side - side.mean(axis=1, keepdims=True) for side in (first, second))
    size = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(size > 0, (one * other).sum(axis=1) / size, np.nan)
    return found
