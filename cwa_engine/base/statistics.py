"""Statistics over sequences, draws and rankings. numpy only.

The unit of resampling is a sequence, because the tokens of one text are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RBO_PERSISTENCE = 0.98  # the first 50 places carry 85 % of the weight of rank-biased overlap

# 97.5 % quantiles of Student's t by degrees of freedom, from 1 on.
_T975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314,
    2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)  # fmt: skip
_Z975 = 1.959964


def t975(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond 30 degrees of freedom by Abramowitz & Stegun 1964, eq. 26.7.5."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = _Z975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def paired_delta(damaged: Array, intact: Array, tokens: Array) -> tuple[float, float, float]:
    """Token-weighted mean of damaged minus intact NLL with its 95 % interval, in nats per token.

    `damaged`, `intact`: NLL sums per sequence. [sequences]  `tokens`: scored tokens per sequence. [sequences]

    Returns (mean, low, high). The interval is the leave-one-out jackknife of the ratio of sums (Efron & Tibshirani 1993,
    chapter 11) with Student's t, widened by the factor 1 + 2/n: changes of losses are skewed, so on few texts t alone
    covers the truth too rarely (docs/evidence.md). With one sequence the interval is infinite. If a loss is not finite,
    low and high are NaN.
    """
    change = damaged - intact
    delta = float(change.sum() / tokens.sum())
    if not np.isfinite(change).all():
        return delta, math.nan, math.nan
    if len(change) < 2:
        return delta, -math.inf, math.inf
    without = (change.sum() - change) / (tokens.sum() - tokens)  # each sequence left out in turn
    n = len(change)
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    reach = (1 + 2 / n) * t975(n - 1) * error
    return delta, delta - reach, delta + reach


def as_extreme(value: float, draws: Sequence[float]) -> int:
    """How many draws are at least as far from zero as `value`. Values that are not finite count as farthest."""
    sizes = [abs(entry) if math.isfinite(entry) else math.inf for entry in (value, *draws)]
    return sum(size >= sizes[0] for size in sizes[1:])


def jaccard(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Size of the intersection over size of the union."""
    union = set(first) | set(second)
    return len(set(first) & set(second)) / len(union) if union else 1.0


def jaccard_by_chance(k: int, population: int) -> float:
    """Jaccard index of two sets of size k whose intersection is the expected one of random sets, k² / population."""
    return k / (2 * population - k)


def rank_biased_overlap(
    first: Sequence[Hashable], second: Sequence[Hashable], persistence: float = RBO_PERSISTENCE
) -> float:
    """Rank-biased overlap of two rankings of equal depth, extrapolated (Webber et al. 2010, eq. 30). Top places weigh most."""
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
    """Spearman's rank correlation, with ties at their mean rank; None if all values of one side are equal."""
    ranks = [_mean_ranks(np.asarray(side)) for side in (first, second)]
    if len(ranks[0]) < 2 or any(side.min() == side.max() for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: Array) -> Array:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_ranks: Array = (ends - (counts - 1) / 2)[places]
    return mean_ranks
