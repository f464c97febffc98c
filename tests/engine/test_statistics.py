"""Intervals and ratios against plain formulas and against data of known distribution."""

from __future__ import annotations

import numpy as np
import pytest

from cwa_engine.statistics import bootstrap_weights, paired_delta, separation_ratio


def sample(rng: np.random.Generator, n: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = rng.integers(20, 60, n).astype(float)
    intact = tokens * rng.normal(3, 0.5, n)
    return intact + tokens * rng.normal(shift, 0.2, n), intact, tokens


def test_the_difference_is_weighted_by_tokens() -> None:
    tokens = np.array([1.0, 99.0])
    delta, low, high = paired_delta(np.array([3.0, 99.0]), np.array([1.0, 99.0]), tokens, bootstrap_weights(2, 0))
    assert delta == pytest.approx(2 / 100)
    assert low <= delta <= high


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


@pytest.mark.parametrize(
    "draws", [[], [np.zeros(3)], [np.array([0.0, np.nan, 0.0])]], ids=["none", "no change", "collapsed"]
)
def test_there_is_no_ratio_without_a_finite_change_to_divide_by(draws: list[np.ndarray]) -> None:
    assert separation_ratio(np.ones(3), draws, np.zeros(3), np.ones(3), bootstrap_weights(3, 0)) is None


def test_a_collapsed_critical_set_has_no_ratio() -> None:
    collapsed = np.array([1.0, np.inf, 1.0])
    assert separation_ratio(collapsed, [np.ones(3)], np.zeros(3), np.ones(3), bootstrap_weights(3, 0)) is None
