"""Draws of controls: as many, elsewhere, uniform, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.methods.controls import CONTROLS, Population, Selection, count, critical_set
from cwa_engine.models.anatomy import Parameter
from cwa_engine.rows import TopWeight

RANDOM = [name for name, control in CONTROLS.items() if control.is_random]


def population(sizes: dict[str, int]) -> Population:
    """Parameters of ten or two rows where that is possible, vectors otherwise, with weights that grow along each."""
    rows = {name: next(rows for rows in (10, 2, 1) if size % rows == 0) for name, size in sizes.items()}
    shapes = {name: (rows[name], size // rows[name]) if rows[name] > 1 else (size,) for name, size in sizes.items()}
    parameters = {
        name: Parameter(name, i, shape, None, "other", i % 2 == 1) for i, (name, shape) in enumerate(shapes.items())
    }
    return Population(parameters, lambda name: np.arange(sizes[name], dtype=np.float32))


def draw(name: str, critical: Selection, sizes: dict[str, int], seed: int = 0) -> Selection:
    return CONTROLS[name].draw(critical, population(sizes), np.random.default_rng(seed))


@st.composite
def cases(pick: st.DrawFn) -> tuple[Selection, dict[str, int]]:
    sizes = {f"p{i}": size for i, size in enumerate(pick(st.lists(st.integers(1, 60), min_size=1, max_size=5)))}
    critical = {}
    for name, size in sizes.items():
        chosen = pick(st.sets(st.integers(0, size - 1)))
        if chosen:
            critical[name] = np.array(sorted(chosen), dtype=np.int64)
    if not critical:
        critical = {"p0": np.array([0])}
    return critical, sizes


@given(cases(), st.sampled_from(RANDOM), st.integers(0, 5))
def test_a_draw_has_as_many_different_existing_weights_as_the_critical_set(
    case: tuple[Selection, dict[str, int]], name: str, seed: int
) -> None:
    critical, sizes = case
    drawn = draw(name, critical, sizes, seed)
    assert count(drawn) == count(critical)
    for parameter, indices in drawn.items():
        assert len(set(indices.tolist())) == len(indices)
        assert 0 <= indices.min() <= indices.max() < sizes[parameter]
        assert indices.tolist() == sorted(indices.tolist())


@pytest.mark.parametrize(("name", "feature"), [("same_row", "out_feature"), ("same_column", "in_feature")])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_draw_from_the_same_row_or_column_keeps_that_feature(name: str, feature: str, transposed: bool) -> None:
    parameter = Parameter("a", 0, (6, 9), None, "other", transposed)
    critical = {"a": np.array([3, 4, 20, 53])}
    people = Population({"a": parameter}, lambda name: np.ones(54, dtype=np.float32))
    drawn = CONTROLS[name].draw(critical, people, np.random.default_rng(0))

    def kept(selection: Selection) -> list[int | None]:
        return sorted(getattr(parameter.place(index), feature) for index in selection["a"].tolist())

    assert kept(drawn) == kept(critical)
    assert not set(drawn["a"].tolist()) & set(critical["a"].tolist())


def test_a_magnitude_matched_draw_is_from_the_largest_weights_at_other_positions() -> None:
    critical = {"a": np.array([999, 998, 5])}
    drawn = draw("magnitude_matched", critical, {"a": 1000})["a"]
    assert len(drawn) == 3
    assert drawn.min() >= 1000 - 103
    assert not set(drawn.tolist()) & {999, 998, 5}


@given(cases())
def test_a_matched_draw_has_as_many_of_each_parameter_and_none_of_the_critical_where_others_are_left(
    case: tuple[Selection, dict[str, int]],
) -> None:
    critical, sizes = case
    drawn = draw("random_matched", critical, sizes)
    assert {name: len(i) for name, i in drawn.items()} == {name: len(i) for name, i in critical.items()}
    for name, indices in drawn.items():
        if 2 * len(indices) <= sizes[name]:
            assert not set(indices.tolist()) & set(critical[name].tolist())


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_seed_draws_the_same_and_another_seed_something_else(name: str) -> None:
    critical, sizes = {"a": np.arange(20) * 7}, {"a": 10_000, "b": 100_000}
    first, again, other = (draw(name, critical, sizes, seed) for seed in (1, 1, 2))
    assert {n: i.tolist() for n, i in first.items()} == {n: i.tolist() for n, i in again.items()}
    assert {n: i.tolist() for n, i in first.items()} != {n: i.tolist() for n, i in other.items()}


@given(cases(), st.integers(0, 5))
def test_a_draw_from_the_whole_model_has_none_of_the_critical_weights_where_enough_others_are_left(
    case: tuple[Selection, dict[str, int]], seed: int
) -> None:
    critical, sizes = case
    drawn = draw("random", critical, sizes, seed)
    if 2 * count(critical) <= sum(sizes.values()):
        assert not places(drawn) & places(critical)


def places(selection: Selection) -> set[tuple[str, int]]:
    return {(name, index) for name, indices in selection.items() for index in indices.tolist()}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("taken", [6, 10], ids=["more than half", "all"])
def test_a_parameter_with_too_few_other_weights_gives_as_many_all_the_same(name: str, taken: int) -> None:
    drawn = draw(name, {"a": np.arange(taken)}, {"a": 10})
    assert len(places(drawn)) == count(drawn) == taken


# Crowded and sparse parameters are drawn from in two ways. Chi-square has mean f and deviation sqrt(2 f) where a draw is
# fair, f being the degrees of freedom; drawing without replacement makes it a little smaller.
@pytest.mark.parametrize("name", ["random", "random_matched"])
@pytest.mark.parametrize("size", [17, 1000], ids=["crowded", "sparse"])
def test_every_weight_outside_the_critical_set_is_drawn_equally_often(name: str, size: int) -> None:
    sizes = {"a": size, "b": size} if name == "random" else {"a": size}
    offset = {"a": 0, "b": size}
    hits = np.zeros(sum(sizes.values()))
    for seed in range(4000):
        for parameter, indices in draw(name, {"a": np.array([0, 3, 7])}, sizes, seed).items():
            hits[indices + offset[parameter]] += 1
    assert hits[[0, 3, 7]].tolist() == [0, 0, 0]
    free = np.delete(hits, [0, 3, 7])
    expected = 4000 * 3 / len(free)
    chi_square, freedom = ((free - expected) ** 2 / expected).sum(), len(free) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_ranking_becomes_a_selection_of_its_weights() -> None:
    parameters = {name: Parameter(name, order, (10,), None, "other") for order, name in enumerate("ab")}
    rows = [top_weight(name, index) for name, index in (("a", 9), ("b", 1), ("a", 2))]
    found = critical_set(rows, parameters)
    assert {name: indices.tolist() for name, indices in found.items()} == {"a": [2, 9], "b": [1]}


def top_weight(name: str, flat_index: int) -> TopWeight:
    return TopWeight(1, name, flat_index, flat_index, None, 0.0, 1.0, None, "other", None, f"{name}[{flat_index}]")
