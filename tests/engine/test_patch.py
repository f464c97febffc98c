"""Edits are verified when written and undone bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.errors import InvalidInput
from cwa_engine.perturbation.kinds import PERTURBATIONS, Perturbation
from cwa_engine.perturbation.patch import patched
from tests.engine.conftest import fingerprint
from tests.models import tiny_model

ZERO = PERTURBATIONS["zero"]
NAME = "model.layers.1.mlp.down_proj.weight"
SELECTION = {NAME: np.array([0, 5, 2047]), "model.norm.weight": np.array([3])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zeroed_weights_are_zero_inside_and_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    before = fingerprint(model)
    with patched(model, SELECTION, ZERO) as receipts:
        assert model.get_parameter(NAME).view(-1)[[0, 5, 2047]].tolist() == [0, 0, 0]
        assert {r.parameter: len(r.old) for r in receipts} == {NAME: 3, "model.norm.weight": 1}
        assert fingerprint(model) != before
    assert fingerprint(model) == before


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_zeroed_weights_come_back_bit_for_bit_even_if_evaluation_raises(raised: type[BaseException]) -> None:
    model = tiny_model("gpt2")
    before = fingerprint(model)
    with pytest.raises(raised), patched(model, {"transformer.h.0.mlp.c_fc.weight": np.array([1, 2])}, ZERO):
        raise raised
    assert fingerprint(model) == before


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
def test_any_bit_pattern_comes_back_be_it_nan_negative_zero_or_denormal(patterns: list[int]) -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.weight.data.view(-1).view(torch.int32)[: len(patterns)] = torch.tensor(patterns).to(torch.int32)
    before = fingerprint(layer)
    with patched(layer, {"weight": np.arange(len(patterns))}, ZERO):
        pass
    assert fingerprint(layer) == before


def test_a_target_that_does_not_exist_is_an_error_and_nothing_is_written() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    for selection in ({NAME: np.array([0]), "model.nrom.weight": np.array([0])}, {NAME: np.array([0, 10**9])}):
        with pytest.raises((AttributeError, IndexError)), patched(model, selection, ZERO):
            pass
    assert fingerprint(model) == before


def test_a_receipt_counts_what_an_edit_did_not_change() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data[0, 0] = 0.0
    layer.weight.data[0, 1] = -0.0
    with patched(layer, {"weight": np.arange(4)}, ZERO) as receipts:
        assert receipts[0].unchanged == 1  # -0.0 becomes 0.0, which is another pattern of bits


def test_an_unknown_perturbation_is_named_with_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match="unknown perturbation 'zeros'") as raised:
        PERTURBATIONS["zeros"]
    assert "'zero'" in raised.value.hint


def scale(factor: float) -> Perturbation:
    return Perturbation("scale", lambda old: old * factor)


def test_any_registered_rewrite_goes_through_the_same_undo(llama: Any) -> None:
    before = fingerprint(llama.model)
    with patched(llama.model, SELECTION, scale(-3.0)):
        pass
    assert fingerprint(llama.model) == before
