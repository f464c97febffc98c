"""What is said of one weight is what plain numpy says of its whole tensor."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Inspected, to_dict
from cwa_engine.inspection import weight_facts
from cwa_engine.models.checksum import checksum
from cwa_engine.rows import ValueDistribution, WeightFacts
from tests.engine.conftest import wrap
from tests.models import tiny_model

DOWN = "model.layers.1.mlp.down_proj.weight"


def expected_distribution(values: Any, found: ValueDistribution) -> None:
    flat = values.astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    assert (found.count, found.not_finite) == (len(finite), len(flat) - len(finite))
    assert found.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-15)
    assert found.std == pytest.approx(finite.std(), rel=1e-9)
    for quantile in found.quantiles:
        assert quantile.value == np.quantile(finite, quantile.share, method="inverted_cdf")
    edges = np.array(found.edges)
    assert (edges[0], edges[-1]) == (finite.min(), finite.max())
    inside = np.searchsorted(edges, finite, side="right") - 1  # a bin has its lower edge
    assert found.counts == tuple(np.bincount(np.minimum(inside, len(edges) - 2), minlength=len(edges) - 1))


def expected_place(values: Any, facts: WeightFacts) -> None:
    sizes, size = np.abs(values.astype(np.float64)).ravel(), abs(facts.value)
    assert facts.rank == 1 + (sizes > size).sum()
    assert facts.equal == (sizes == size).sum() - 1
    assert facts.smaller_share == (sizes < size).sum() / np.isfinite(sizes).sum()


@pytest.mark.parametrize("piece", [2**20, 100])
def test_a_weight_stands_in_its_tensor_where_numpy_says(
    llama: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwa_engine.inspection._PIECE", piece)
    loaded = llama
    before = checksum(loaded.model)
    matrix = loaded.model.get_parameter(DOWN).detach().numpy()
    facts = weight_facts(loaded, f"{DOWN}[5,17]")
    assert facts.value == matrix[5, 17]
    assert (facts.layer, facts.component, facts.shape, facts.transposed) == (1, "down", matrix.shape, False)
    expected_distribution(matrix, facts.distribution)
    expected_place(matrix, facts)
    row, column = facts.lines
    assert [near.value for near in row.around] == matrix[5, 13:22].tolist()
    assert [near.target for near in row.around][4] == f"{DOWN}[5,17]"
    assert [near.value for near in column.around] == matrix[1:10, 17].tolist()
    order = np.argsort(-np.abs(matrix[:, 17]))[:5]
    assert [(near.target, near.value) for near in column.largest] == [(f"{DOWN}[{i},17]", matrix[i, 17]) for i in order]
    assert row.rank == 1 + (np.abs(matrix[5]) > abs(matrix[5, 17])).sum()
    assert row.target == f"{DOWN}[5,:]"
    assert row.norm == pytest.approx(np.linalg.norm(matrix[5].astype(np.float64)))
    assert checksum(loaded.model) == before


def test_a_transposed_matrix_is_read_by_out_and_in() -> None:
    gpt2 = wrap(tiny_model("gpt2"))
    name = "transformer.h.0.mlp.c_fc.weight"
    stored = gpt2.model.get_parameter(name).detach().numpy()  # [in, out]
    facts = weight_facts(gpt2, f"{name}[7,3]")
    assert (facts.value, facts.transposed, facts.shape) == (stored[3, 7], True, stored.shape)
    row, column = facts.lines
    assert [near.value for near in row.around] == stored[0:8, 7].tolist()
    assert [near.value for near in column.around] == stored[3, 3:12].tolist()


def test_rows_columns_and_heads_are_compared_by_their_norms(llama: Any) -> None:
    matrix = llama.model.get_parameter(DOWN).detach().numpy().astype(np.float64)
    for target, norms, unit in (
        (f"{DOWN}[5,:]", np.linalg.norm(matrix, axis=1), 5),
        (f"{DOWN}[:,6]", np.linalg.norm(matrix, axis=0), 6),
    ):
        facts = weight_facts(llama, target)
        assert facts.value == pytest.approx(norms[unit], rel=1e-12)
        assert facts.rank == 1 + (norms > norms[unit]).sum()
        assert (facts.distribution.count, facts.lines[0].target) == (len(norms), target)
    name = "model.layers.0.self_attn.o_proj.weight"
    heads = llama.model.get_parameter(name).detach().numpy().astype(np.float64)
    facts = weight_facts(llama, f"{name}[:,16:32]")
    assert (facts.structure, facts.distribution.count) == ("head", 2)
    assert facts.value == pytest.approx(np.linalg.norm(heads[:, 16:32]))


def test_a_weight_of_a_vector_has_its_vector_around_it(llama: Any) -> None:
    name = "model.norm.weight"
    vector = llama.model.get_parameter(name).detach().numpy()
    facts = weight_facts(llama, f"{name}[1]")
    expected_distribution(vector, facts.distribution)
    (line,) = facts.lines
    assert (line.kind, line.target) == ("vector", f"{name}[:]")
    assert [near.value for near in line.around] == vector[:6].tolist()


def test_what_is_no_single_unit_is_refused(llama: Any) -> None:
    with pytest.raises(InvalidInput, match="no single row"):
        weight_facts(llama, f"{DOWN}[0:3,1]")
    with pytest.raises(InvalidInput, match="lies outside"):
        weight_facts(llama, f"{DOWN}[999,1]")


def test_facts_come_over_the_wire_as_they_were(llama: Any) -> None:
    facts = weight_facts(llama, f"{DOWN}[5,17]")
    assert event_from_plain(to_dict(Inspected(facts))) == Inspected(facts)


@functools.cache
def _any_llama() -> Any:
    return wrap(tiny_model("llama"))


SPECIAL = (0.0, -0.0, 1.0, -1.0, 1.5, 2**-149, 65504.0, math.inf, -math.inf, math.nan)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_any_tensor_is_described_exactly(data: Any, dtype: torch.dtype) -> None:
    loaded = _any_llama()
    name = "model.layers.0.input_layernorm.weight"
    numbers = st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False, allow_infinity=False)
    around_one = st.floats(0.9375, 1.0625, width=32)
    values = data.draw(st.lists(numbers, min_size=32, max_size=32) | st.lists(around_one, min_size=32, max_size=32))
    parameter = loaded.model.get_parameter(name)
    kept = parameter.data
    try:
        parameter.data = torch.tensor(values, dtype=torch.float64).to(dtype)
        vector = parameter.data.double().numpy()
        facts = weight_facts(loaded, f"{name}[3]")
        if not np.isfinite(vector).any():
            assert (facts.distribution.count, facts.distribution.quantiles, facts.distribution.counts) == (0, (), ())
            return
        expected_distribution(vector, facts.distribution)
        if math.isfinite(facts.value):
            finite = vector[np.isfinite(vector)]
            expected_place(finite, facts)
        else:
            assert facts.rank is None
    finally:
        parameter.data = kept
