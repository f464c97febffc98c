"""Statistics over sequences, draws and rankings. numpy only.

The unit of resampling is a sequence, because the tokens of one text are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

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


def widened(figure: tuple[float, float, float], comparisons: int) -> tuple[float, float, float]:
    """(value, low, high) of a 95 % interval as one of so many that hold together with 95 % (Bonferroni)."""
    value, low, high = figure
    factor = NormalDist().inv_cdf(1 - 0.025 / max(1, comparisons)) / _Z975
    return value, value - factor * (value - low), value + factor * (high - value)


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
    ranks = [mean_ranks(np.asarray(side)) for side in (first, second)]
    if len(ranks[0]) < 2 or any(side.min() == side.max() for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def mean_ranks(values: Array) -> Array:
    """Ranks from 1 on, the smallest first; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts - 1) / 2)[places]
    return ranks


_EXACT = 60  # pairs up to which Kendall's p is exact
_BLOCK = 64  # values of which inversions are counted by comparing each with each


def kendall(first: Array, second: Array) -> float | None:
    """Kendall's tau-b: concordant minus discordant pairs over all, corrected for ties; None if one side is all equal."""
    values = np.asarray(first), np.asarray(second)
    order = np.lexsort((values[1], values[0]))
    pairs = len(order) * (len(order) - 1) / 2
    tied_first, tied_second, tied_both = (_tied_pairs(v) for v in (values[0], values[1], np.stack(values, axis=1)))
    if pairs in (tied_first, tied_second):
        return None
    discordant = _inversions(values[1][order])
    difference = pairs - tied_first - tied_second + tied_both - 2 * discordant
    return float(difference / math.sqrt((pairs - tied_first) * (pairs - tied_second)))


def kendall_p(tau: float, pairs: int) -> float:
    """Probability of a tau at least as far from zero, of two rankings without ties that have nothing to do with each other.

    `pairs`: how many things were ranked. Up to 60 it is exact (Kendall 1938), beyond by the normal approximation.
    """
    if pairs <= _EXACT:
        total = pairs * (pairs - 1) // 2
        ways = np.ones(1)  # permutations by their number of inversions, as shares of all
        for size in range(2, pairs + 1):
            ways = np.convolve(ways, np.full(size, 1 / size))
        distance = abs(total - 2 * np.arange(len(ways)))
        return min(1.0, float(ways[distance >= abs(tau) * total - 1e-9].sum()))
    deviation = math.sqrt(2 * (2 * pairs + 5) / (9 * pairs * (pairs - 1)))
    return math.erfc(abs(tau) / deviation / math.sqrt(2))


def _tied_pairs(values: Array) -> float:
    counts = np.unique(values, axis=0, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())


def _inversions(values: Array) -> int:
    """Pairs of which the earlier is larger: within blocks by comparing all, between sorted blocks by binary search."""
    blocks = [values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK)]
    count = sum(int(np.triu(block[:, None] > block[None, :]).sum()) for block in blocks)
    blocks = [np.sort(block) for block in blocks]
    while len(blocks) > 1:
        joined = []
        for first, second in zip(blocks[::2], blocks[1::2], strict=False):
            count += int((len(first) - np.searchsorted(first, second, side="right")).sum())
            joined.append(np.sort(np.concatenate([first, second]), kind="stable"))
        blocks = joined + blocks[len(joined) * 2 :]
    return count


_EXACT_FLIPS = 12  # differences up to which all signs are tried
_FLIPS = 9_999


def paired_mean(differences: Array, scale: float = 1.0) -> tuple[float, float, float]:
    """Mean of paired differences of scores with its 95 % interval, the documents being independent.

    Two documents more, which differ by `scale` and by -`scale`, are counted for the interval: for right and wrong answers this
    is the interval of Bonett & Price 2012, which does not shrink to nothing where no document differs. With Student's t; it
    is cut at -`scale` and `scale`, beyond which no mean can be. `scale`: the largest difference that there can be.
    """
    mean = float(differences.mean())
    counted = np.append(differences, [scale, -scale])
    n = len(counted)
    reach = t975(n - 1) * float(counted.std(ddof=1)) / math.sqrt(n)
    middle = float(counted.mean())
    return mean, max(-scale, min(mean, middle - reach)), min(scale, max(mean, middle + reach))


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """Two-sided p of a mean of paired differences: how often one at least as far from zero comes from random signs.

    Differences of zero tell nothing. Where all others are of one size it is the exact binomial test of their signs, McNemar's
    test for right and wrong answers; else all signs are tried for up to 12 of them, and 9,999 draws of signs for more, with
    (1 + as extreme) / (1 + draws). Exact if either sign is as likely, whatever the sizes (Fisher 1935, section 21).
    """
    sizes, total = np.abs(differences[differences != 0]), abs(float(differences.sum()))
    n = len(sizes)
    if not n:
        return 1.0
    if np.ptp(sizes) <= 1e-12 * sizes[0]:
        above = int((differences > 0).sum())
        tail = sum(math.comb(n, k) for k in range(min(above, n - above) + 1))
        return min(1.0, 2 * tail / (1 << n))
    slack = total * (1 - 1e-12)
    if n <= _EXACT_FLIPS:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= slack).mean())
    signs = np.random.default_rng(seed).integers(0, 2, (_FLIPS, n), dtype=np.int8) * 2 - 1
    return (1 + int((np.abs(signs @ sizes) >= slack).sum())) / (1 + _FLIPS)
