"""Chance levels of overlaps and profiles: right values from other code, and the error rates that they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.overlap import Stratum, overlap_by_chance, share_distance
from cwa_engine.base.statistics import kendall, kendall_p

# (population, first, second, common, expected, p); p by scipy.stats.hypergeom.sf of scipy 1.16
KNOWN = (
    (100, 10, 20, 5, 2.0, 0.025464546427043124),
    (134_515_008, 10, 10, 7, 7.434114712315223e-07, 9.107472740442891e-50),
    (50, 30, 40, 22, 24.0, 0.9692192900379759),
    (10**10, 100_000, 100_000, 3, 1.0, 0.08029954679445668),
    (64, 64, 64, 64, 64.0, 1.0),
    (134_515_008, 100_000, 100_000, 200, 74.34114712315224, 1.5645694531350617e-33),
)


@pytest.mark.parametrize(("population", "first", "second", "common", "expected", "p"), KNOWN)
def test_the_overlap_of_random_sets_is_that_of_scipy(
    population: int, first: int, second: int, common: int, expected: float, p: float
) -> None:
    found = overlap_by_chance(common, [Stratum(population, first, second)])
    assert found.expected == pytest.approx(expected, rel=1e-12)
    assert found.p_value == pytest.approx(p, rel=1e-6)


strata = st.lists(
    st.integers(1, 7).flatmap(
        lambda size: st.builds(Stratum, st.just(size), st.integers(0, size), st.integers(0, size))
    ),
    min_size=1,
    max_size=3,
)


@given(strata, st.integers(0, 21))
def test_the_overlap_within_strata_is_that_of_counting_all_sets(parts: list[Stratum], common: int) -> None:
    ways: dict[int, int] = {0: 1}  # overlap -> how many sets of the second kind have it
    for part in parts:
        of_part = {
            x: math.comb(part.first, x) * math.comb(part.size - part.first, part.second - x)
            for x in range(min(part.first, part.second) + 1)
            if part.second - x <= part.size - part.first
        }
        joined: dict[int, int] = {}
        for (x, n), (y, m) in itertools.product(ways.items(), of_part.items()):
            joined[x + y] = joined.get(x + y, 0) + n * m
        ways = joined
    everything = sum(ways.values())
    found = overlap_by_chance(common, parts)
    assert found.p_value == pytest.approx(sum(n for x, n in ways.items() if x >= common) / everything, abs=1e-12)
    assert found.expected == pytest.approx(sum(x * n for x, n in ways.items()) / everything)


def test_random_sets_are_called_alike_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(7)
    sizes, quotas = (400, 60, 40), (20, 20, 10)
    overall, within = [], []
    for _ in range(2000):
        one, other = (set(rng.choice(500, 50, replace=False).tolist()) for _ in range(2))
        overall.append(overlap_by_chance(len(one & other), [Stratum(500, 50, 50)]).p_value)
        common = 0
        for size, quota in zip(sizes, quotas, strict=True):
            one, other = (set(rng.choice(size, quota, replace=False).tolist()) for _ in range(2))
            common += len(one & other)
        within.append(overlap_by_chance(common, [Stratum(s, q, q) for s, q in zip(sizes, quotas, strict=True)]).p_value)
    for p_values in (overall, within):
        assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.06  # 0.05 but for its steps and the simulation's error


def test_sets_that_prefer_the_same_parameters_are_alike_overall_and_not_within_these() -> None:
    """Both draw 20 of a part of 40 weights at random: far above chance overall, as chance has it within."""
    rng, overall, within = np.random.default_rng(8), [], []
    for _ in range(2000):
        one, other = (set(rng.choice(40, 20, replace=False).tolist()) for _ in range(2))
        overall.append(overlap_by_chance(len(one & other), [Stratum(10_000, 20, 20)]).p_value)
        within.append(overlap_by_chance(len(one & other), [Stratum(40, 20, 20)]).p_value)
    assert np.mean(np.array(overall) <= 0.05) == 1
    assert np.mean(np.array(within) <= 0.05) <= 0.06


def test_more_members_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="8 of 7"):
        overlap_by_chance(1, [Stratum(7, 8, 2)])


def test_distance_and_expectation_of_profiles_by_hand() -> None:
    found = share_distance([3, 1, 0], [1, 1, 2])
    assert found.distance == pytest.approx(0.5)  # (2/4 + 0 + 2/4) / 2
    total, far, mean = 0, 0, 0.0
    pool = [0, 0, 0, 0, 1, 1, 2, 2]
    for chosen in itertools.combinations(range(8), 4):  # every division of the eight into two fours
        one = [sum(pool[i] == part for i in chosen) for part in range(3)]
        other = [pool.count(part) - one[part] for part in range(3)]
        distance = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 8
        total, far, mean = total + 1, far + (distance >= 0.5 - 1e-12), mean + distance
    assert found.p_value == pytest.approx(far / total, abs=0.04)
    assert found.expected == pytest.approx(mean / total, abs=0.02)
    assert share_distance([10, 0], [0, 10]).p_value == pytest.approx(5e-4, abs=1e-3)


def test_profiles_of_the_same_shares_are_called_apart_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(9)
    shares = [0.5, 0.3, 0.1, 0.05, 0.05]
    p_values = [
        share_distance(rng.multinomial(100, shares).tolist(), rng.multinomial(50, shares).tolist()).p_value
        for _ in range(400)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.075  # 0.05 and two standard errors of 400 simulations
    assert np.mean(np.array(p_values) <= 0.5) >= 0.35  # a test that never says anything would be no test


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=200))
def test_kendall_is_that_of_comparing_all_pairs(pairs: list[tuple[int, int]]) -> None:
    difference, ties = 0, [0, 0]
    for one, other in itertools.combinations(pairs, 2):
        signs = [np.sign(one[side] - other[side]) for side in (0, 1)]
        difference += signs[0] * signs[1]
        ties = [ties[side] + (signs[side] == 0) for side in (0, 1)]
    everything = len(pairs) * (len(pairs) - 1) // 2
    found = kendall(*np.array(pairs, dtype=float).T)
    if everything in ties:
        assert found is None
    else:
        assert found == pytest.approx(difference / math.sqrt((everything - ties[0]) * (everything - ties[1])))


@pytest.mark.parametrize("size", [2, 3, 5, 6])
def test_the_p_of_kendall_is_the_share_of_all_orders_that_are_as_far(size: int) -> None:
    taus = [
        kendall(np.arange(size, dtype=float), np.array(order, dtype=float))
        for order in itertools.permutations(range(size))
    ]
    for tau in set(taus):
        assert tau is not None
        share = np.mean([abs(other or 0) >= abs(tau) - 1e-9 for other in taus])
        assert kendall_p(tau, size) == pytest.approx(share)


# (tau, pairs, p) by scipy.stats.kendalltau of scipy 1.16, exact up to 60 pairs
@pytest.mark.parametrize(
    ("tau", "pairs", "p"),
    [(-0.11282051282051282, 40, 0.3129143512616966), (0.6090395480225989, 60, 8.96e-14), (0.4376884422110553, 200, 3.4427e-20)],
)  # fmt: skip
def test_the_p_of_kendall_is_that_of_scipy(tau: float, pairs: int, p: float) -> None:
    assert kendall_p(tau, pairs) == pytest.approx(p, rel=1e-3)


def test_orders_that_have_nothing_to_do_with_each_other_are_called_related_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(10)
    for size in (12, 100):
        taus = [kendall(np.arange(size, dtype=float), rng.permutation(size).astype(float)) for _ in range(2000)]
        wrong = np.mean([kendall_p(tau, size) <= 0.05 for tau in taus if tau is not None])
        assert 0.03 <= wrong <= 0.06
