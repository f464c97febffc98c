"""Statistics over sequences, draws and rankings. numpy only.

A sequence is the unit of resampling, for tokens of one text are not independent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
_LEVELS = (2.5, 97.5)
RBO_PERSISTENCE = 0.98  # the first 50 places carry 85 % of the weight of rank-biased overlap


def bootstrap_weights(sequences: int, seed: int, resamples: int = RESAMPLES) -> Array:
    """How often each sequence occurs in each bootstrap resample. [resamples, sequences]"""
    rng = np.random.default_rng(seed)
    return rng.multinomial(sequences, np.full(sequences, 1 / sequences), size=resamples).astype(np.float64)


def paired_delta(damaged: Array, intact: Array, tokens: Array, weights: Array) -> tuple[float, float, float]:
    """Token-weighted mean of damaged minus intact NLL with its bootstrap 95 % interval, in nats per token.

    `damaged`, `intact`: NLL sums per sequence. [sequences]  `tokens`: scored tokens per sequence. [sequences]
    `weights`: from `bootstrap_weights`. Percentile interval (Efron & Tibshirani 1993, section 13.3).
    """
    change = damaged - intact
    resampled = (weights @ change) / (weights @ tokens)
    low, high = np.percentile(resampled, _LEVELS)
    return float(change.sum() / tokens.sum()), float(low), float(high)


def separation_ratio(
    critical: Array, draws: list[Array], intact: Array, tokens: Array, weights: Array
) -> tuple[float, float, float] | None:
    """Change of NLL by the critical set over the mean absolute change by control draws, with its 95 % interval.

    All arrays are NLL sums per sequence [sequences]; the interval resamples sequences, the same for both sides.
    None where the controls changed nothing, or where a loss is not finite: there is no ratio then. An end of the
    interval is infinite where the controls changed nothing in too many resamples to bound it.
    """
    if not draws or not all(np.isfinite(side).all() for side in (critical, *draws)):
        return None
    total = np.vstack([np.ones_like(tokens), weights])  # first row: the sample itself
    per_token = total @ tokens
    numerator = (total @ (critical - intact)) / per_token
    denominator = np.mean([np.abs((total @ (draw - intact)) / per_token) for draw in draws], axis=0)
    if not denominator[0] > 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(denominator > 0, numerator / denominator, np.copysign(np.inf, numerator))
    low = np.percentile(ratio[1:], _LEVELS[0], method="lower")  # no interpolation, which infinity would not survive
    high = np.percentile(ratio[1:], _LEVELS[1], method="higher")
    return float(ratio[0]), float(low), float(high)


def empirical_p(critical: float, draws: Sequence[float]) -> float:
    """(1 + draws at least as bad) / (1 + draws), Davison & Hinkley 1997, eq. 4.11. A loss that is not finite is worst."""
    worst = [np.inf if not np.isfinite(value) else value for value in (critical, *draws)]
    return (1 + sum(draw >= worst[0] for draw in worst[1:])) / (1 + len(draws))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the family-wise error, Holm 1979."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for step, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def jaccard(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Size of the intersection over size of the union."""
    union = set(first) | set(second)
    return len(set(first) & set(second)) / len(union) if union else 1.0


def jaccard_by_chance(k: int, population: int) -> float:
    """About the Jaccard index of two random sets of k: that of sets with the expected intersection, k² / population."""
    return k / (2 * population - k)


def rank_biased_overlap(
    first: Sequence[Hashable], second: Sequence[Hashable], persistence: float = RBO_PERSISTENCE
) -> float:
    """Overlap of two rankings of equal depth, the top counting most; extrapolated, Webber et al. 2010, eq. 30."""
    depth = min(len(first), len(second))
    if not depth:
        return 1.0
    seen_first: set[Hashable] = set()
    seen_second: set[Hashable] = set()
    overlap, total = 0, 0.0
    for place, (one, other) in enumerate(zip(first[:depth], second[:depth], strict=True), start=1):
        overlap += (one in seen_second) + (other in seen_first) + (one == other)
        seen_first.add(one)
        seen_second.add(other)
        total += overlap / place * persistence**place
    return overlap / depth * persistence**depth + (1 - persistence) / persistence * total


def spearman(first: Array, second: Array) -> float | None:
    """Rank correlation, ties at their mean rank; None where one side does not vary."""
    ranks = [_mean_ranks(np.asarray(side)) for side in (first, second)]
    if len(ranks[0]) < 2 or any(side.min() == side.max() for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: Array) -> Array:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_ranks: Array = (ends - (counts - 1) / 2)[places]
    return mean_ranks
