"""Intervals and ratios against plain formulas and against data of known distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cwa_engine.base.statistics import (
    as_extreme,
    jaccard,
    jaccard_by_chance,
    paired_delta,
    rank_biased_overlap,
    spearman,
    t975,
)


def sample(rng: np.random.Generator, n: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = rng.integers(20, 60, n).astype(float)
    intact = tokens * rng.normal(3, 0.5, n)
    return intact + tokens * rng.normal(shift, 0.2, n), intact, tokens


def test_the_difference_is_weighted_by_tokens() -> None:
    tokens = np.array([1.0, 99.0])
    delta, low, high = paired_delta(np.array([3.0, 99.0]), np.array([1.0, 99.0]), tokens)
    assert delta == pytest.approx(2 / 100)
    assert low <= delta <= high


sums = arrays(float, 6, elements=st.floats(0, 1000))
token_counts = arrays(float, 6, elements=st.integers(1, 500).map(float))


@given(sums, sums, token_counts)
def test_the_difference_and_its_interval_are_those_of_the_plain_formulas(
    damaged: np.ndarray, intact: np.ndarray, tokens: np.ndarray
) -> None:
    delta, low, high = paired_delta(damaged, intact, tokens)
    change = [float(damaged[i] - intact[i]) for i in range(6)]
    assert delta == pytest.approx(sum(change) / sum(tokens), rel=1e-9, abs=1e-9)
    left_out = []
    for gone in range(6):
        kept = [i for i in range(6) if i != gone]
        left_out.append(sum(change[i] for i in kept) / sum(float(tokens[i]) for i in kept))
    mean = sum(left_out) / 6
    error = math.sqrt(5 / 6 * sum((value - mean) ** 2 for value in left_out))
    reach = float(integrated_t975(5)) * (1 + 2 / 6) * error
    assert (low, high) == pytest.approx((delta - reach, delta + reach), rel=1e-4, abs=1e-6)


def integrated_t975(freedom: int) -> float:
    """By integrating the density, which shares nothing with a table."""
    grid = np.linspace(0, 60, 600_001)
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = constant * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    below = 0.5 + np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * (grid[1] - grid[0]))])
    return float(grid[np.searchsorted(below, 0.975)])


@pytest.mark.parametrize("freedom", [1, 2, 5, 15, 30, 31, 65, 1000])
def test_the_quantiles_of_students_t_are_those_of_its_density(freedom: int) -> None:
    assert t975(freedom) == pytest.approx(integrated_t975(freedom), abs=2e-3)


def test_a_single_sequence_bounds_nothing() -> None:
    one = np.array([2.0])
    assert paired_delta(np.array([5.0]), one, one) == (1.5, -math.inf, math.inf)


def test_a_loss_that_is_not_finite_has_no_interval() -> None:
    delta, low, high = paired_delta(np.array([np.inf, 1.0]), np.ones(2), np.ones(2))
    assert delta == math.inf and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("texts", [8, 16, 40])
def test_about_95_of_100_intervals_hold_the_true_difference(texts: int) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        damaged, intact, tokens = sample(rng, texts, 0.3)
        _, low, high = paired_delta(damaged, intact, tokens)
        hits += low <= 0.3 <= high
    assert 0.92 <= hits / 600 <= 0.98


def test_draws_count_by_the_size_of_their_change_and_a_collapse_is_largest() -> None:
    assert as_extreme(1.0, [0.1, -0.5, 0.9]) == 0
    assert as_extreme(0.5, [0.1, -0.5, 0.9]) == 2
    assert as_extreme(-0.7, [0.1, 0.5, 0.9]) == 1
    assert as_extreme(math.nan, [0.1, 1e9]) == 0
    assert as_extreme(0.5, [math.inf, math.nan]) == 2


def test_the_chance_level_is_what_random_sets_have() -> None:
    rng = np.random.default_rng(0)
    found = [
        jaccard(rng.choice(200, 40, replace=False).tolist(), rng.choice(200, 40, replace=False).tolist())
        for _ in range(3000)
    ]
    assert jaccard_by_chance(40, 200) == pytest.approx(float(np.mean(found)), rel=0.02)


@given(st.permutations(range(6)), st.permutations(range(3, 9)), st.floats(0.5, 0.99))
def test_rank_biased_overlap_is_the_sum_over_depths_of_shared_prefixes(
    first: list[int], second: list[int], persistence: float
) -> None:
    agreement = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, 7)]
    inside = sum((1 - persistence) * persistence ** (d - 1) * a for d, a in enumerate(agreement, start=1))
    expected = inside + agreement[-1] * persistence**6  # beyond the end the agreement stays as it was there
    assert rank_biased_overlap(first, second, persistence) == pytest.approx(expected)
    assert rank_biased_overlap(first, first, persistence) == pytest.approx(1)
    assert rank_biased_overlap(first, [n + 100 for n in second], persistence) == 0


def test_spearman_sees_order_alone_and_shares_ranks_among_ties() -> None:
    values = np.array([3.0, 1.0, 2.0, 10.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9486832980505138)
    assert spearman(np.ones(4), values) is None
