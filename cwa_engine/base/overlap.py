"""What two random sets have in common, and how far two shares of parts lie apart by chance. numpy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REDRAWS = 1999  # of a permutation test: its p is then no smaller than 5e-4
_NOTHING = 1e-300  # a probability below this is taken to be zero


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of a population that two sets are drawn from: its size, and how many of it each set has."""

    size: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class ChanceOverlap:
    """How much two random sets share: `expected` on average, and `p_value` the probability of at least as much as seen."""

    expected: float
    p_value: float


def overlap_by_chance(common: int, strata: Iterable[Stratum]) -> ChanceOverlap:
    """Two sets share `common` members; what do two random sets share that have as many members in every stratum?

    Within a stratum of N members the overlap of a set of m and a random set of n is hypergeometric, with mean mn/N; strata
    are independent, so their distributions are convolved. With one stratum this is Fisher's exact test, one-sided.
    """
    expected, start = 0.0, 0
    total = np.ones(1)
    for stratum in strata:
        if min(stratum.first, stratum.second) == 0:
            continue
        if max(stratum.first, stratum.second) > stratum.size:
            raise ValueError(f"{max(stratum.first, stratum.second)} of {stratum.size} members")
        expected += stratum.first * stratum.second / stratum.size
        least, probabilities = _hypergeometric(stratum)
        total, cut = _without_ends(np.convolve(total, probabilities))
        start += least + cut
    tail = float(total[max(0, common - start) :].sum()) if common < start + len(total) else 0.0
    return ChanceOverlap(expected, min(1.0, tail))


def _hypergeometric(stratum: Stratum) -> tuple[int, Array]:
    """(a, P(a), P(a + 1), ...): the overlap of a set with a random set. What is beyond the ends has no probability.

    The ratio of neighbours is (m - x)(n - x) / ((x + 1)(N - m - n + x + 1)); from their logarithms, summed and normalised,
    come probabilities of any size, where factorials of a billion would cancel.
    """
    size, first, second = stratum.size, stratum.first, stratum.second
    least, most = max(0, first + second - size), min(first, second)
    x = np.arange(least, most, dtype=np.float64)
    ratios = np.log(first - x) + np.log(second - x) - np.log(x + 1) - np.log(size - first - second + x + 1)
    logs = np.concatenate([[0.0], np.cumsum(ratios)])
    weights = np.exp(logs - logs.max())
    probabilities, cut = _without_ends(weights / weights.sum())
    return least + cut, probabilities


def _without_ends(probabilities: Array) -> tuple[Array, int]:
    """(the same from the first to the last that is more than nothing, how many were cut at the beginning)."""
    there = np.flatnonzero(probabilities > _NOTHING)
    return probabilities[there[0] : there[-1] + 1], int(there[0])


@dataclass(frozen=True, slots=True)
class ShareDistance:
    """How far the shares of two sets lie apart: `distance` is their total variation, from 0 to 1.

    `expected` is what two random halves of both sets together have on average, and `p_value` the probability that they lie
    at least as far apart, by `REDRAWS` random divisions.
    """

    distance: float
    expected: float
    p_value: float


def share_distance(first: Sequence[int], second: Sequence[int], seed: int = 0) -> ShareDistance:
    """Total variation distance of the shares of counts, with its permutation test.

    `first`, `second`: how many members of each set belong to each part. [parts]  The test takes members to be drawn one by
    one, and divides all of both sets anew into two of the same sizes.
    """
    counts = np.array([first, second], dtype=np.int64)
    sizes = counts.sum(axis=1)
    if not sizes.all():
        raise ValueError("a set without members has no shares")
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts.sum(axis=0), sizes[0], size=REDRAWS)
    distances = _total_variation(drawn / sizes[0], (counts.sum(axis=0) - drawn) / sizes[1])
    seen = float(_total_variation(counts[0] / sizes[0], counts[1] / sizes[1]))
    as_far = int((distances >= seen - 1e-12).sum())
    return ShareDistance(seen, float(distances.mean()), (1 + as_far) / (1 + REDRAWS))


def _total_variation(first: Array, second: Array) -> Array:
    distance: Array = np.abs(first - second).sum(axis=-1) / 2
    return distance
