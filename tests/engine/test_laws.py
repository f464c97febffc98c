"""Laws fitted to sizes: values by scipy, and error rates by simulation, of planted laws and of planted others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from cwa_engine.base.errors import InvalidInput
from cwa_engine.studies.analysis.laws import CONSTANT, EXPONENTIAL, LAWS, POWER, best_of, fit_law, trend
from cwa_engine.studies.analysis.paired import TextChanges, log_covariance

SIZES = [70_000_000, 160_000_000, 410_000_000, 1_000_000_000, 2_800_000_000]
TEXTS = 33


def power_law(sizes: Any, exponent: float = -0.4) -> Any:
    return 2 * (sizes / 1e8) ** exponent


def measured(
    truth: Any, rng: np.random.Generator, error: float = 0.05, shared: float = 0.5, texts: int = TEXTS
) -> tuple[list[float], Any]:
    """(damage of each size, its covariance) as measured on texts whose errors the sizes share in part."""
    tokens = rng.integers(20, 60, size=texts).astype(float)
    shares, common = tokens / tokens.sum(), rng.normal(size=texts)
    members = []
    for value in truth:
        noise = math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=texts)
        members.append(TextChanges(value * (1 + error * math.sqrt(texts) * noise) * shares, shares))
    return [float(member.changes.sum()) for member in members], log_covariance(members)


def rates(
    draw: Callable[[np.random.Generator], Any], times: int = 250, sizes: list[int] = SIZES, exponent: float = -0.4
) -> tuple[float, float]:
    """(how often a power law is rejected, how often the exponent's interval has the true one)"""
    rng = np.random.default_rng(7)
    rejected = covered = 0
    for _ in range(times):
        values, covariance = measured(draw(rng), rng)
        fit = fit_law(POWER, sizes, values, covariance, TEXTS - 1)
        rejected += fit.is_rejected
        covered += fit.low <= exponent <= fit.high  # type: ignore[operator]
    return rejected / times, covered / times


def test_the_weighted_fit_is_the_minimum_that_scipy_finds() -> None:
    values, covariance = measured(power_law(np.array(SIZES)), np.random.default_rng(3))
    fit = fit_law(POWER, SIZES, values, covariance, TEXTS - 1)
    weights = np.linalg.inv(covariance)

    def misfit(law: Any) -> float:
        rest = np.log(values) - law[0] - law[1] * np.log(SIZES)
        return float(rest @ weights @ rest)

    found = optimize.minimize(
        misfit, [5.0, -0.3], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-10, "maxiter": 9999}
    )
    assert fit.misfit == pytest.approx(found.fun, rel=1e-5)
    free = len(SIZES) - 2
    scaled = found.fun * (TEXTS - 1 - free + 1) / ((TEXTS - 1) * free)
    assert fit.p_value == pytest.approx(stats.f.sf(scaled, free, TEXTS - free), rel=1e-4)
    assert fit.aicc == pytest.approx(found.fun + 4 + 12 / 2, rel=1e-5)


def test_with_equal_errors_the_exponent_and_its_interval_are_those_of_a_regression() -> None:
    values = [1.0, 0.9, 0.5, 0.45, 0.2]
    regression = stats.linregress(np.log(SIZES), np.log(values))
    reach = stats.t.ppf(0.975, 3) * regression.stderr
    found = trend(SIZES, values)
    assert (found.slope, found.low) == pytest.approx((regression.slope, regression.slope - reach))
    fit = fit_law(POWER, SIZES, values, np.eye(5) * 1e-6, 32)  # small errors: all is scatter
    assert (fit.slope, fit.low, fit.high) == pytest.approx((regression.slope, found.low, found.high), rel=1e-3)
    assert fit.is_rejected
    assert fit.scatter == pytest.approx(
        math.sqrt(np.sum((np.log(values) - regression.intercept - regression.slope * np.log(SIZES)) ** 2) / 3), rel=1e-2
    )


def test_where_sizes_scatter_a_size_that_was_measured_most_exactly_does_not_count_for_all() -> None:
    values = [1.0, 0.9, 0.5, 0.45, 0.2]
    errors = np.diag([1e-8, 1e-4, 1e-4, 1e-8, 1e-4])  # beside them a scatter of about 0.2: each counts alike
    slope = stats.linregress(np.log(SIZES), np.log(values)).slope
    assert fit_law(POWER, SIZES, values, errors, 32).slope == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("values", [[8.0, 4.0, 2.5, 1.0], [3.0, 5.0, 2.0, 4.0], [8.0, 4.0, 2.5, 1.6, 1.0]])
def test_the_p_of_a_trend_is_the_share_of_orders_that_correlate_as_strongly(values: list[float]) -> None:
    sizes = SIZES[: len(values)]
    seen = abs(stats.pearsonr(np.log(sizes), np.log(values)).statistic)
    orders = [abs(stats.pearsonr(np.log(sizes), np.log(o)).statistic) for o in itertools.permutations(values)]
    assert trend(sizes, values).p_trend == pytest.approx(np.mean(np.array(orders) >= seen - 1e-12))


def test_random_values_have_a_trend_or_a_bend_in_one_of_twenty_studies() -> None:
    rng = np.random.default_rng(8)
    found = [trend(SIZES, list(np.exp(rng.normal(size=5)))) for _ in range(300)]
    assert np.mean([entry.p_trend <= 0.05 for entry in found]) <= 0.08
    assert np.mean([entry.p_bend is not None and entry.p_bend <= 0.05 for entry in found]) <= 0.08
    bent = trend(SIZES, [float(np.exp(-(math.log(size / 4e8) ** 2))) for size in SIZES])
    assert bent.p_bend is not None and bent.p_bend < 1e-6


def test_a_true_power_law_is_rejected_in_one_of_twenty_studies() -> None:
    rejected, covered = rates(lambda rng: power_law(np.array(SIZES)))
    assert 0.02 <= rejected <= 0.09
    assert covered >= 0.94


def test_the_interval_of_the_exponent_holds_where_sizes_scatter_about_the_law() -> None:
    for scatter in (0.1, 0.4):
        rejected, covered = rates(lambda rng, s=scatter: power_law(np.array(SIZES)) * np.exp(s * rng.normal(size=5)))  # type: ignore[misc]
        assert rejected > 0.7  # for it is none to within the errors
        assert 0.91 <= covered <= 0.99


@pytest.mark.parametrize(
    "law",
    [
        lambda sizes: 2 * np.exp(-sizes / 1e9),
        lambda sizes: 0.3 + power_law(sizes, -0.9),
        lambda sizes: np.where(sizes < 5e8, 2.0, 0.5),
    ],
    ids=["exponential", "with a floor", "step"],
)
def test_what_is_no_power_law_is_found_not_to_be_one(law: Callable[[Any], Any]) -> None:
    assert rates(lambda rng: law(np.array(SIZES)), times=60)[0] >= 0.95


def test_a_constant_has_an_exponent_that_includes_zero_and_fits_best_by_aicc() -> None:
    rng, best, includes = np.random.default_rng(5), 0, 0
    for _ in range(100):
        values, covariance = measured(np.full(5, 0.7), rng)
        fits = {law: fit_law(law, SIZES, values, covariance, TEXTS - 1) for law in LAWS}
        best += best_of(list(fits.values()))[0].law == CONSTANT
        includes += fits[POWER].low <= 0 <= fits[POWER].high  # type: ignore[operator]
    assert best >= 90
    assert includes >= 94


def test_an_exponential_fits_better_than_a_power_law_where_it_is_true() -> None:
    rng = np.random.default_rng(6)
    values, covariance = measured(2 * np.exp(-np.array(SIZES) / 2e9), rng)
    fits = [fit_law(law, SIZES, values, covariance, TEXTS - 1) for law in LAWS]
    assert [fit.law for fit in best_of(fits)] == [EXPONENTIAL]
    exponential = best_of(fits)[0]
    assert exponential.low is not None and exponential.high is not None
    assert exponential.low <= -1 / 2e9 <= exponential.high


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.floats(-2, 2),
    factor=st.floats(1e-3, 1e3),
    steps=st.lists(st.floats(1.2, 10), min_size=4, max_size=9),
)
def test_an_exact_power_law_is_found_whatever_its_scale(exponent: float, factor: float, steps: list[float]) -> None:
    sizes = [int(size) for size in 1e6 * np.cumprod(steps)]
    values = [factor * (size / sizes[0]) ** exponent for size in sizes]
    fit = fit_law(POWER, sizes, values, np.eye(len(sizes)) * 0.05**2, 32)
    assert fit.slope == pytest.approx(exponent, abs=1e-6)
    assert not fit.is_rejected
    assert [fit.at(size) for size in sizes] == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "values", "freedom", "why"),
    [
        (SIZES[:3], [1.0, 2.0, 3.0], 32, "3 sizes are too few"),
        ([*SIZES[:3], SIZES[2]], [1.0, 2.0, 3.0, 3.1], 32, "3 sizes are too few"),
        (SIZES, [1.0, 2.0, 0.0, 1.0, 1.0], 32, "positive"),
        (SIZES, [1.0, 2.0, math.inf, 1.0, 1.0], 32, "positive"),
        (SIZES, [1.0, 2.0, 1.0, 1.0, 1.0], 3, "4 texts"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes: list[int], values: list[float], freedom: int, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        fit_law(POWER, sizes, values, np.eye(len(sizes)) * 0.01, freedom)
