"""Are things of one label nearer to each other than to those of other labels? A permutation test over the labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MOST_DIVISIONS = 20_000  # up to so many the test goes through all
REDRAWS = 9_999


@dataclass(frozen=True, slots=True)
class LabelTest:
    """Mean distances within and between labels. `p_value`: the share of all ways to give these labels to the same things by
    which between exceeds within by at least as much; `divisions` of them were tried, all of them where it is `exact`."""

    within: float
    between: float
    p_value: float
    divisions: int
    exact: bool


def smallest_p(labels: Sequence[str]) -> float:
    """The smallest p that so many things of these labels can have: labels of equally many things may be exchanged."""
    sizes = Counter(Counter(labels).values())
    same = math.prod(math.factorial(count) for count in sizes.values())
    return same / _ways(labels)


def within_between(distances: Array, labels: Sequence[str]) -> LabelTest:
    """The test for symmetric distances. [things, things]

    Raises ValueError where no label has two things, or there is but one label.
    """
    if len(set(labels)) < 2 or len(set(labels)) == len(labels):
        raise ValueError("a test over labels needs two of them, and one with two things")
    numbers = np.unique(labels, return_inverse=True)[1]
    upper = np.triu_indices(len(labels), 1)
    values = distances[upper]

    def means(order: NDArray[np.int64]) -> tuple[float, float]:
        same = order[upper[0]] == order[upper[1]]
        return float(values[same].mean()), float(values[~same].mean())

    within, between = means(numbers)
    exact = _ways(labels) <= MOST_DIVISIONS
    others = _orders(Counter(numbers.tolist())) if exact else _random_orders(numbers)
    found = [far - near for order in others for near, far in [means(np.array(order))]]
    as_far = sum(gap >= between - within - 1e-12 for gap in found)
    p_value = as_far / len(found) if exact else (1 + as_far) / (1 + len(found))
    return LabelTest(within, between, p_value, len(found), exact)


def _ways(labels: Sequence[str]) -> int:
    return math.factorial(len(labels)) // math.prod(math.factorial(count) for count in Counter(labels).values())


def _orders(left: Counter[int]) -> Iterator[tuple[int, ...]]:
    """Every different order of these numbers."""
    if not left:
        yield ()
    for number in list(left):
        for rest in _orders(left - Counter([number])):
            yield (number, *rest)


def _random_orders(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    for _ in range(REDRAWS):
        yield rng.permutation(numbers)
