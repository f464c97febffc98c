"""Units of rows, columns and heads, and the names that people give to weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import (
    common_structure,
    find_weights,
    target_name,
    unit_count,
    unit_of,
    unit_size,
    unit_weights,
)
from cwa_engine.targets import STRUCTURES, parse_target
from cwa_engine.weight_files.reading import read_weights


@st.composite
def parameters(pick: st.DrawFn) -> Parameter:
    """Vectors, matrices in both orders, stacks of experts in both orders, and matrices with heads."""
    transposed = pick(st.booleans())
    experts = pick(st.one_of(st.none(), st.integers(1, 3)))
    heads, size = pick(st.integers(1, 3)), pick(st.integers(1, 4))
    ins, outs = heads * size, pick(st.integers(1, 5))
    if pick(st.booleans()):
        shape: tuple[int, ...] = (outs,)
        transposed = False
    else:
        shape = (ins, outs) if transposed else (outs, ins)
    head_size = size if len(shape) == 2 and experts is None else None
    return Parameter("a.b-1.weight", 0, (experts, *shape) if experts else shape, 0, "o", transposed, experts, head_size)


def grid(parameter: Parameter) -> np.ndarray[Any, Any]:
    """Flat indices as [experts, out, in], by numpy alone."""
    stored = np.arange(parameter.numel).reshape(parameter.shape)
    stacked = stored if parameter.experts else stored[None]
    matrices = stacked[..., None] if stacked.ndim == 2 else stacked
    return matrices.swapaxes(1, 2) if parameter.transposed else matrices


@given(parameters())
def test_a_weight_is_where_its_features_say(parameter: Parameter) -> None:
    for (expert, out_feature, in_feature), flat_index in np.ndenumerate(grid(parameter)):
        assert parameter.flat_index(expert, out_feature, in_feature) == flat_index
        place = parameter.place(int(flat_index))
        assert place.out_feature == out_feature
        assert place.in_feature == (None if parameter.is_vector else in_feature)
        assert place.expert == (expert if parameter.experts else None)


@given(parameters(), st.sampled_from(STRUCTURES))
def test_units_share_out_all_weights_of_a_parameter_and_know_whose_each_is(
    parameter: Parameter, structure: str
) -> None:
    count = unit_count(parameter, structure)
    units = [unit_weights(parameter, structure, np.array([unit])).tolist() for unit in range(count)]
    if count:
        assert sorted(index for unit in units for index in unit) == list(range(parameter.numel))
    for number, unit in enumerate(units):
        assert len(unit) == unit_size(parameter, structure)
        assert {unit_of(parameter, structure, index) for index in unit} == {number}


@given(parameters())
def test_rows_columns_and_heads_are_those_of_the_out_by_in_matrix(parameter: Parameter) -> None:
    matrices = grid(parameter)
    if parameter.is_vector:
        assert [unit_count(parameter, structure) for structure in STRUCTURES] == [parameter.numel, 0, 0, 0]
        return
    rows = [sorted(row.tolist()) for matrix in matrices for row in matrix]
    assert rows == [unit_weights(parameter, "row", np.array([unit])).tolist() for unit in range(len(rows))]
    columns = [sorted(column.tolist()) for matrix in matrices for column in matrix.T]
    assert columns == [unit_weights(parameter, "column", np.array([unit])).tolist() for unit in range(len(columns))]
    if parameter.head_size:
        size = parameter.head_size
        heads = [matrices[0][:, start : start + size] for start in range(0, parameter.in_features, size)]
        for unit, head in enumerate(heads):
            assert unit_weights(parameter, "head", np.array([unit])).tolist() == sorted(head.flatten().tolist())


@given(parameters(), st.sampled_from(STRUCTURES), st.data())
def test_the_name_of_a_unit_leads_back_to_its_weights(
    parameter: Parameter, structure: str, data: st.DataObject
) -> None:
    count = unit_count(parameter, structure)
    if not count:
        return
    unit = np.array([data.draw(st.integers(0, count - 1))])
    weights = unit_weights(parameter, structure, unit)
    first = int(weights[0])
    target = parse_target(target_name(parameter, structure, first))
    assert find_weights(target, {parameter.name: parameter}).tolist() == weights.tolist()


PARAMETERS = {
    "norm.weight": Parameter("norm.weight", 0, (9,), None, "norm"),
    "o.weight": Parameter("o.weight", 1, (4, 6), 0, "o", head_size=3),
    "experts.down": Parameter("experts.down", 2, (2, 3, 5), 0, "expert", transposed=True, experts=2),
}


@pytest.mark.parametrize(
    ("target", "weights"),
    [
        ("norm.weight[7]", [7]),
        ("norm.weight[:]", list(range(9))),
        ("o.weight[1,2]", [8]),
        ("o.weight[ 1 , : ]", [6, 7, 8, 9, 10, 11]),
        ("o.weight[1:3,5]", [11, 17]),
        ("experts.down[1,4,0]", [15 + 4]),  # stored [expert, in, out]
        ("experts.down[:,0,2]", [10, 25]),
    ],
)
def test_a_target_names_weights_by_out_and_in_feature(target: str, weights: list[int]) -> None:
    assert find_weights(parse_target(target), PARAMETERS).tolist() == weights


@pytest.mark.parametrize(
    "text", ["", "norm.weight", "norm.weight[]", "norm.weight[a]", "norm.weight[-1]", "[3]", "a[1;2]"]
)
def test_what_is_no_target_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match="names no weight") as raised:
        parse_target(text)
    assert "[2533,7890]" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("nrom.weight[1]", "no parameter nrom.weight", "did you mean 'norm.weight'"),
        ("norm.weight[9]", "lies outside", "out 0 to 8"),
        ("norm.weight[3:10]", "lies outside", "out 0 to 8"),
        ("norm.weight[3:3]", "lies outside", "out 0 to 8"),
        ("norm.weight[1,2]", "has 2 indices, norm.weight takes 1", "out 0 to 8"),
        ("o.weight[1]", "has 1 indices, o.weight takes 2", "out 0 to 3, in 0 to 5"),
        ("experts.down[2,0,0]", "lies outside", "expert 0 to 1, out 0 to 4, in 0 to 2"),
    ],
)
def test_weights_that_the_model_has_not_are_refused_with_what_it_has(text: str, said: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=said) as raised:
        find_weights(parse_target(text), PARAMETERS)
    assert hint in raised.value.hint


@pytest.mark.parametrize(
    ("targets", "structure"),
    [
        (["norm.weight[1]", "o.weight[1,2]"], "weight"),
        (["o.weight[1,:]", "o.weight[3,:]", "experts.down[0,2,:]"], "row"),
        (["o.weight[:,1]"], "column"),
        (["o.weight[:,3:6]"], "head"),
        (["o.weight[:,2:5]"], "weight"),  # across two heads
        (["o.weight[1,:]", "o.weight[:,1]"], "weight"),
        (["o.weight[0:2,:]"], "weight"),
    ],
)
def test_targets_of_one_kind_are_compared_with_controls_of_that_kind(targets: list[str], structure: str) -> None:
    assert common_structure([parse_target(target) for target in targets], PARAMETERS) == structure


def test_a_file_of_targets_may_have_comments_or_be_the_table_of_a_run(tmp_path: Path) -> None:
    plain = tmp_path / "weights.txt"
    plain.write_text("# found last week\nnorm.weight[1]\n\no.weight[1,:]  # a row\n")
    assert read_weights(plain) == ["norm.weight[1]", "o.weight[1,:]"]
    table = tmp_path / "topk_obd.csv"
    table.write_text('rank,target,stable\n1,"o.weight[1,2]",\n2,norm.weight[3],\n')
    assert read_weights(table) == ["o.weight[1,2]", "norm.weight[3]"]


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"\xff\xfe\x00"])
def test_a_file_without_targets_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.txt"):
        read_weights(tmp_path / "weights.txt")
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        read_weights(tmp_path / "none.txt")
