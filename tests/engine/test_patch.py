"""Edits are verified when written and undone bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from cwa_engine.base.errors import InvalidInput, WeightsNotRestored
from cwa_engine.damage.patch import patched
from cwa_engine.methods.perturbations import PERTURBATIONS, Options
from tests.engine.conftest import fingerprint
from tests.models import tiny_model

ZERO = PERTURBATIONS["zero"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAME = "model.layers.1.mlp.down_proj.weight"
SELECTION = {NAME: np.array([0, 5, 2047]), "model.norm.weight": np.array([3])}


@pytest.mark.parametrize("dtype", DTYPES)
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


def stored(patterns: list[int], dtype: torch.dtype) -> torch.nn.Linear:
    """A layer whose first weights have exactly these bits."""
    layer = torch.nn.Linear(4, 4, bias=False).to(dtype)
    integers = torch.int32 if dtype is torch.float32 else torch.int16
    layer.weight.data.view(-1).view(integers)[: len(patterns)] = torch.tensor(patterns).to(integers)
    return layer


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8), st.sampled_from(DTYPES))
@example([0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 1, 0x807FFFFF], torch.float32)
@example([0x8000, 0x7FC1, 0xFF81, 0x7F80, 1, 0x807F], torch.bfloat16)
@example([0x8000, 0x7E01, 0xFC01, 0x7C00, 1, 0x83FF], torch.float16)
def test_any_bit_pattern_comes_back_be_it_nan_infinite_negative_zero_or_denormal(
    patterns: list[int], dtype: torch.dtype
) -> None:
    layer = stored(patterns, dtype)
    before = fingerprint(layer)
    with patched(layer, {"weight": np.arange(len(patterns))}, ZERO) as receipts:
        inside = fingerprint(layer)
    assert fingerprint(layer) == before
    assert inside["weight"][: len(patterns) * layer.weight.element_size()].strip(b"\0") == b""
    assert receipts[0].unchanged == sum(pattern % 2 ** (8 * layer.weight.element_size()) == 0 for pattern in patterns)


@pytest.mark.parametrize(
    "selection",
    [
        {NAME: np.array([0]), "model.nrom.weight": np.array([0])},
        {NAME: np.array([0]), "model.layers.1.mlp": np.array([0])},
        {NAME: np.array([0, 2048])},
        {"model.norm.weight": np.array([0]), NAME: np.array([-1])},
    ],
    ids=["misspelt", "no parameter", "too large", "negative"],
)
def test_a_target_that_does_not_exist_is_an_error_before_anything_is_written(selection: dict[str, Any]) -> None:
    model = tiny_model("llama")
    before, versions = fingerprint(model), [p._version for p in model.parameters()]
    with pytest.raises((AttributeError, IndexError)), patched(model, selection, ZERO):
        pass
    assert fingerprint(model) == before
    assert [p._version for p in model.parameters()] == versions  # torch counts every write


def test_a_tensor_whose_memory_is_no_vector_is_refused_rather_than_edited_in_a_copy() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    layer.weight = torch.nn.Parameter(layer.weight.detach().t())
    before = fingerprint(layer)
    with pytest.raises(RuntimeError, match="view"), patched(layer, {"weight": np.array([1])}, ZERO):
        pass
    assert fingerprint(layer) == before


def test_a_receipt_tells_old_and_new_values() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with patched(layer, {"weight": np.array([1, 2])}, PERTURBATIONS["sign_flip"]) as (receipt,):
        pass
    assert (receipt.parameter, receipt.indices.tolist()) == ("weight", [1, 2])
    assert (receipt.old.tolist(), receipt.new.tolist(), receipt.unchanged) == ([2.0, 3.0], [-2.0, -3.0], 0)


def test_an_edit_that_does_not_hold_is_an_error_and_the_others_are_undone() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    twice = {"model.norm.weight": np.array([3]), NAME: np.array([5, 5])}  # two draws for one weight: one is lost
    with pytest.raises(WeightsNotRestored, match=NAME), patched(model, twice, PERTURBATIONS["gaussian_noise"]):
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_every_perturbation_changes_only_its_weights_and_is_undone_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    before = fingerprint(model)
    with patched(model, SELECTION, PERTURBATIONS[name]):
        inside = {parameter: p.detach().clone() for parameter, p in model.named_parameters()}
    assert fingerprint(model) == before
    for parameter, p in model.named_parameters():
        changed = (inside[parameter] != p).flatten().nonzero().flatten().tolist()
        assert set(changed) <= set(SELECTION.get(parameter, np.array([])).tolist())
        assert bool(changed) == (parameter in SELECTION)


def edited(name: str, weight: torch.Tensor, **options: Any) -> torch.Tensor:
    """All weights of a layer after a perturbation."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight.clone())
    with patched(layer, {"weight": np.arange(weight.numel())}, PERTURBATIONS[name], Options(**options)):
        return layer.weight.detach().clone()


@pytest.fixture(params=DTYPES)
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    return (torch.randn(8, 16, generator=torch.Generator().manual_seed(0)) + 0.5).to(request.param)


def test_perturbations_do_what_they_are_called(weight: torch.Tensor) -> None:
    exact = weight.double()
    assert edited("zero", weight).count_nonzero() == 0
    assert torch.equal(edited("sign_flip", weight), -weight)
    assert torch.equal(edited("scale", weight, scale_factor=-3.0), (exact * -3).to(weight.dtype))
    torch.testing.assert_close(edited("mean", weight).double(), exact.mean().expand(8, 16), rtol=1e-2, atol=0)
    noise = edited("gaussian_noise", weight, noise_scale=0.5).double() - exact
    assert float(noise.std()) == pytest.approx(0.5 * float(exact.std()), rel=0.2)
    assert torch.equal(edited("gaussian_noise", weight, seed=1), edited("gaussian_noise", weight, seed=1))
    assert not torch.equal(edited("gaussian_noise", weight, seed=1), edited("gaussian_noise", weight, seed=2))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_weights_lie_on_few_levels_half_a_step_away_at_most(bits: int) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    rounded = edited("quantize", weight, bits=bits)
    step = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
    assert float((rounded - weight).abs().max()) <= step / 2 + 1e-6
    assert len(rounded.unique()) <= 2**bits - 1


def test_a_bit_flip_changes_exactly_that_bit_of_the_stored_number(weight: torch.Tensor) -> None:
    integers, width = {4: (torch.int32, 32), 2: (torch.int16, 16)}[weight.element_size()]
    for bit in range(width):
        flipped = edited("bit_flip", weight, bit=bit).view(integers) ^ weight.view(integers)
        assert {value & (2**width - 1) for value in flipped.flatten().tolist()} == {2**bit}
    assert torch.equal(edited("bit_flip", weight, bit=width - 1), -weight)
    drawn = edited("bit_flip", weight).view(integers) ^ weight.view(integers)
    assert all((value & (2**width - 1)).bit_count() == 1 for value in drawn.flatten().tolist())
    assert len(drawn.unique()) > 4
    with pytest.raises(InvalidInput, match=f"has no bit {width}"):
        edited("bit_flip", weight, bit=width)
