"""Intervals and ratios against plain formulas and against data of known distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cwa_engine.statistics import (
    bootstrap_weights,
    empirical_p,
    holm,
    jaccard,
    jaccard_by_chance,
    paired_delta,
    rank_biased_overlap,
    separation_ratio,
    spearman,
)


def sample(rng: np.random.Generator, n: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = rng.integers(20, 60, n).astype(float)
    intact = tokens * rng.normal(3, 0.5, n)
    return intact + tokens * rng.normal(shift, 0.2, n), intact, tokens


def test_the_difference_is_weighted_by_tokens() -> None:
    tokens = np.array([1.0, 99.0])
    delta, low, high = paired_delta(np.array([3.0, 99.0]), np.array([1.0, 99.0]), tokens, bootstrap_weights(2, 0))
    assert delta == pytest.approx(2 / 100)
    assert low <= delta <= high


sums = arrays(float, 6, elements=st.floats(0, 1000))
token_counts = arrays(float, 6, elements=st.integers(1, 500).map(float))


@given(sums, sums, token_counts)
def test_the_difference_is_that_of_the_plain_formula(
    damaged: np.ndarray, intact: np.ndarray, tokens: np.ndarray
) -> None:
    delta, low, high = paired_delta(damaged, intact, tokens, bootstrap_weights(6, 0, 50))
    plain = sum(damaged[i] - intact[i] for i in range(6)) / sum(tokens)
    assert delta == pytest.approx(plain, rel=1e-9, abs=1e-9)
    per_token = (damaged - intact) / tokens
    rounding = 1e-9 * (1 + abs(per_token).max())
    assert per_token.min() - rounding <= low <= high <= per_token.max() + rounding


@given(st.integers(0, 2**32 - 1), st.integers(10, 60))
def test_an_interval_holds_the_difference_it_was_made_for(seed: int, n: int) -> None:
    damaged, intact, tokens = sample(np.random.default_rng(seed), n, 0.3)
    delta, low, high = paired_delta(damaged, intact, tokens, bootstrap_weights(n, seed, 200))
    assert low <= delta <= high
    assert low < high


def test_the_same_seed_gives_the_same_interval() -> None:
    assert (bootstrap_weights(7, 3) == bootstrap_weights(7, 3)).all()
    assert (bootstrap_weights(7, 3) != bootstrap_weights(7, 4)).any()


def test_a_single_sequence_has_an_interval_of_no_width() -> None:
    one = np.array([2.0])
    assert paired_delta(np.array([5.0]), one, one, bootstrap_weights(1, 0)) == (1.5, 1.5, 1.5)


def test_a_bootstrap_resample_has_as_many_sequences_as_the_sample() -> None:
    assert (bootstrap_weights(7, 0).sum(axis=1) == 7).all()


def test_about_95_of_100_intervals_hold_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        damaged, intact, tokens = sample(rng, 40, 0.3)
        _, low, high = paired_delta(damaged, intact, tokens, bootstrap_weights(40, trial, 500))
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_separation_is_the_critical_change_over_the_mean_absolute_change_of_the_draws() -> None:
    tokens, intact = np.full(4, 10.0), np.full(4, 30.0)
    draws = [intact + 1.0, intact - 3.0]
    found = separation_ratio(intact + 20.0, draws, intact, tokens, bootstrap_weights(4, 0))
    assert found == pytest.approx((10.0, 10.0, 10.0))


changes = arrays(float, 6, elements=st.floats(0.1, 50))


@given(sums, changes, st.lists(changes, min_size=1, max_size=3), token_counts)
def test_the_separation_is_that_of_the_plain_formula(
    intact: np.ndarray, critical: np.ndarray, draws: list[np.ndarray], tokens: np.ndarray
) -> None:
    found = separation_ratio(
        intact + critical, [intact + draw for draw in draws], intact, tokens, bootstrap_weights(6, 0, 50)
    )
    mean_of_draws = sum(abs(draw.sum() / tokens.sum()) for draw in draws) / len(draws)
    assert found is not None
    assert found[0] == pytest.approx(critical.sum() / tokens.sum() / mean_of_draws, rel=1e-6)


def test_draws_that_move_the_loss_up_and_down_do_not_cancel() -> None:
    tokens, intact = np.full(4, 10.0), np.full(4, 30.0)
    found = separation_ratio(intact + 6.0, [intact + 2.0, intact - 2.0], intact, tokens, bootstrap_weights(4, 0))
    assert found == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    "draws", [[], [np.zeros(3)], [np.array([0.0, np.nan, 0.0])]], ids=["none", "no change", "collapsed"]
)
def test_there_is_no_ratio_without_a_finite_change_to_divide_by(draws: list[np.ndarray]) -> None:
    assert separation_ratio(np.ones(3), draws, np.zeros(3), np.ones(3), bootstrap_weights(3, 0)) is None


def test_draws_that_moved_one_sequence_alone_have_a_ratio_without_an_upper_bound() -> None:
    draws = [np.array([2.0, 0.0, 0.0])]  # many resamples leave that sequence out
    found = separation_ratio(np.full(3, 4.0), draws, np.zeros(3), np.ones(3), bootstrap_weights(3, 0))
    assert found is not None
    assert found[0] == 6.0
    assert 0 < found[1] < 6.0 and found[2] == np.inf


def test_a_collapsed_critical_set_has_no_ratio() -> None:
    collapsed = np.array([1.0, np.inf, 1.0])
    assert separation_ratio(collapsed, [np.ones(3)], np.zeros(3), np.ones(3), bootstrap_weights(3, 0)) is None


def test_the_p_value_counts_draws_at_least_as_bad_and_a_collapse_is_worst() -> None:
    assert empirical_p(1.0, [0.1, 0.5, 0.9]) == 1 / 4
    assert empirical_p(0.5, [0.1, 0.5, 0.9]) == 3 / 4
    assert empirical_p(math.nan, [0.1, 1e9]) == 1 / 3
    assert empirical_p(0.5, [math.inf, math.nan]) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_never_below_the_raw_value_and_steps_down_from_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    running = 0.0
    for step, place in enumerate(order):  # the definition, Holm 1979
        running = max(running, min(1.0, p_values[place] * (len(p_values) - step)))
        assert adjusted[place] == pytest.approx(running)
        assert adjusted[place] >= p_values[place]


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


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
