"""Exact selection against sorting everything."""

from __future__ import annotations

import random
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import RunFailed
from cwa_engine.models.anatomy import Parameter
from cwa_engine.sensitivity.selection import TopKSelection


def parameter(order: int, numel: int) -> Parameter:
    return Parameter(f"p{order}", order, (numel,), None, "other", transposed=False)


def sort_everything(tensors: list[list[float]], k: int) -> list[tuple[int, int, float]]:
    everything = [(order, index, s) for order, scores in enumerate(tensors) for index, s in enumerate(scores)]
    return sorted(everything, key=lambda entry: (-entry[2], entry[0], entry[1]))[:k]


few_values = st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.5])  # so that most scores are tied
any_values = st.floats(0, 1e6, width=32)
tensors_of_scores = st.lists(st.lists(few_values, max_size=30) | st.lists(any_values, max_size=30), max_size=6)


@given(tensors_of_scores, st.integers(1, 50), st.integers(1, 7), st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_k_largest_are_those_of_a_full_sort_in_whatever_order_and_pieces_they_come(
    tensors: list[list[float]], k: int, piece: int, row: int, shuffle: random.Random
) -> None:
    offers = [
        (order, start, scores[start : start + piece])
        for order, scores in enumerate(tensors)
        for start in range(0, len(scores), piece)
    ]
    shuffle.shuffle(offers)
    selection = TopKSelection(k)
    with mock.patch("cwa_engine.sensitivity.selection.ROW", row):
        for order, start, scores in offers:
            selection.offer(parameter(order, len(tensors[order])), torch.tensor(scores), offset=start)
    assert selection.ranked() == sort_everything(tensors, k)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error_that_names_its_parameter(bad: float) -> None:
    selection = TopKSelection(2)
    selection.offer(parameter(0, 3), torch.tensor([5.0, 6.0, 7.0]))
    with pytest.raises(RunFailed, match="p1"):
        selection.offer(parameter(1, 3), torch.tensor([1.0, bad, 1.0]))


def test_what_cannot_enter_leaves_the_selection_alone() -> None:
    selection = TopKSelection(2)
    selection.offer(parameter(0, 3), torch.tensor([5.0, 6.0, 7.0]))
    selection.offer(parameter(1, 1000), torch.linspace(0, 4, 1000))
    assert [(order, index) for order, index, _ in selection.ranked()] == [(0, 2), (0, 1)]
    assert selection.threshold == 6.0
