"""The bit map of a weight: every stored bit in three dtypes, in range of the layer and out of it, and collapse."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.methods.perturbations import STORED_BITS
from cwa_engine.weight_rows import BitFlip, WeightCard
from cwa_engine.weights.bits import flips_of
from cwa_engine.weights.card import weight_card
from tests.engine.conftest import TEXTS, wrap
from tests.engine.test_weight_card import changed, examined, plain_nll, spec_for
from tests.models import tiny_model

NAME = "model.layers.1.mlp.down_proj.weight"
DOWN = f"{NAME}[3,5]"


def bfloat16_of(value: float) -> int:
    """The 16 bits of a float32 rounded to bfloat16, ties to even, by arithmetic on its integers."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def as_float(dtype: str, bits: int) -> float:
    if dtype == "bfloat16":
        return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    code = {"float16": ("<H", "<e"), "float32": ("<I", "<f")}[dtype]
    return float(struct.unpack(code[1], struct.pack(code[0], bits))[0])


def bits_of(dtype: str, value: float) -> int:
    if dtype == "bfloat16":
        return bfloat16_of(value)
    if dtype == "float16":
        return int(np.array(value, dtype=np.float32).astype(np.float16).view(np.uint16))
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def same(one: float, two: float) -> bool:
    return one == two or (math.isnan(one) and math.isnan(two))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-60000, max_value=60000))
def test_flipped_values_are_those_of_the_bits_of_struct_and_numpy(value: float) -> None:
    for flip in flips_of(torch.tensor([value], dtype=torch.float32)):
        stored = bits_of(flip.dtype, value)
        assert flip.before == as_float(flip.dtype, stored)
        assert same(flip.after, as_float(flip.dtype, stored ^ (1 << flip.bit))), flip
        assert flip.held and same(float(flip.placed), flip.after)  # float32 holds all of them


def card_with(value: float, dtype: torch.dtype = torch.float32, largest: float | None = None) -> WeightCard:
    model = changed(tiny_model("llama"), NAME, {(3, 5): value, **({(0, 0): largest} if largest else {})})
    return weight_card(wrap(model.to(dtype)), spec_for(DOWN), texts=TEXTS)


def by_bit(card: WeightCard) -> dict[tuple[str, int], BitFlip]:
    return {(row.dtype, row.bit): row for row in card.bits}


def test_every_bit_of_three_dtypes_has_a_row_with_its_part() -> None:
    rows = by_bit(examined("llama", DOWN))
    assert set(rows) == {(d, b) for d in ("bfloat16", "float16", "float32") for b in range(STORED_BITS[d])}
    fractions = {
        d: sum(row.part == "fraction" for row in rows.values() if row.dtype == d)
        for d in ("bfloat16", "float16", "float32")
    }
    assert fractions == {"bfloat16": 7, "float16": 10, "float32": 23}
    assert [row.part for row in rows.values()].count("sign") == 3


@pytest.mark.parametrize("bit", [("bfloat16", 15), ("bfloat16", 9), ("float16", 13), ("float32", 30), ("float32", 22)])
def test_the_damage_of_a_flip_is_that_of_a_model_with_this_value(bit: tuple[str, int]) -> None:
    row = by_bit(examined("llama", DOWN))[bit]
    intact, tokens = plain_nll(tiny_model("llama"), TEXTS[1::2])
    flipped, _ = plain_nll(changed(tiny_model("llama"), NAME, {(3, 5): row.flipped}), TEXTS[1::2])
    assert row.delta_nll == pytest.approx((sum(flipped) - sum(intact)) / sum(tokens), abs=1e-6)
    assert row.delta_low is not None and row.delta_nll is not None and row.delta_high is not None
    assert row.delta_low <= row.delta_nll <= row.delta_high and row.sequences == 4


@pytest.mark.parametrize(("value", "becomes"), [(1.0, "infinity"), (-1.0, "-infinity"), (1.5, "NaN")])
def test_the_highest_bit_of_the_exponent_makes_infinity_or_nan_and_the_model_collapse(
    value: float, becomes: str
) -> None:
    for bit in (("bfloat16", 14), ("float16", 14), ("float32", 30)):
        row = by_bit(card_with(value))[bit]
        assert (row.becomes, row.in_range, row.held) == (becomes, False, True)
        assert (row.delta_nll, row.perplexity_ratio) == (None, None)
        assert row.collapsed_at == "model.layers.1.mlp.down_proj"


def test_in_range_is_what_the_layer_has_already() -> None:
    rows = by_bit(card_with(0.5, largest=-1.0))
    assert (rows["bfloat16", 15].flipped, rows["bfloat16", 15].in_range) == (-0.5, True)
    assert (rows["float32", 23].flipped, rows["float32", 23].in_range) == (1.0, True)
    assert (rows["bfloat16", 14].flipped > 1e30, rows["bfloat16", 14].in_range) == (True, False)


@pytest.mark.parametrize(("dtype", "own"), [(torch.bfloat16, "bfloat16"), (torch.float16, "float16")])
def test_what_the_dtype_of_the_model_cannot_hold_is_not_measured_and_says_so(dtype: torch.dtype, own: str) -> None:
    card = card_with(0.7, dtype)
    assert all(row.held and (row.delta_nll is not None or row.collapsed_at) for row in card.bits if row.dtype == own)
    others = [row for row in card.bits if not row.held]
    assert others and all((row.delta_nll, row.sequences, row.collapsed_at) == (None, 0, None) for row in others)
    for row in card.bits:
        exact = float(torch.tensor(row.flipped, dtype=torch.float64).to(dtype).double())
        assert row.held == same(exact, row.flipped)


def test_a_flip_of_a_norm_with_an_offset_is_of_the_stored_value() -> None:
    def stored(model: Any) -> float:
        return float(model.get_parameter("model.norm.weight")[4])

    rows = by_bit(examined("llama", "model.norm.weight[4]"))
    assert rows["float32", 31].flipped == -stored(tiny_model("llama"))
