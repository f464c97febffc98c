"""A table of a run reads back as the rows that were written, whatever they hold."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.table import Table, scored_metrics
from cwa_engine.questions import ablation, critical_set, interactions, spike_removal, stability
from cwa_engine.questions.fidelity import Prediction, fidelity_table
from cwa_engine.records import tables
from cwa_engine.rows import DamagePoint, TopWeight

MODULES = (tables, ablation, critical_set, interactions, spike_removal, stability)
ALL = [entry for module in MODULES for entry in vars(module).values() if isinstance(entry, Table)]
ALL.append(tables.topk_table("magnitude"))
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8) | st.sampled_from(['a,"b"', "two\nlines", "return\rhere", "ünï\u2028", "None", "\x00"]),
    int: st.integers(),
    float: st.floats(),
    bool: st.booleans(),
}
VALUES |= {kind | None: st.none() | values.filter(lambda value: value != "") for kind, values in VALUES.items()}


def rows_of(kind: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: VALUES[hints[field.name]] for field in dataclasses.fields(kind)})


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, NaN included; type by type, so that 1 is not True."""
    return repr(one) == repr(other)


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
@given(data=st.data())
def test_what_is_written_is_read_back(table: Table[Any], data: st.DataObject) -> None:
    rows = data.draw(st.lists(rows_of(table.row), max_size=4))
    content = table.to_bytes(rows)
    assert same(table.from_bytes(content), rows)
    assert table.to_bytes(table.from_bytes(content)) == content
    assert same(table.from_bytes(content, 1, 2), rows[1:3])


@given(
    st.lists(st.tuples(st.text(min_size=1), st.floats(), st.none() | st.floats(), st.none() | st.floats()), max_size=4)
)
def test_scores_by_several_metrics_have_a_column_each(
    drawn: list[tuple[str, float, float | None, float | None]],
) -> None:
    rows = [Prediction(target, "drawn", delta, -math.inf, math.nan, tuple(scores)) for target, delta, *scores in drawn]
    content = fidelity_table(["obd", "fisher"]).to_bytes(rows)
    assert scored_metrics(content) == ("obd", "fisher")
    assert same(fidelity_table(scored_metrics(content)).from_bytes(content), rows)


def test_the_file_is_what_the_csv_module_reads_as_well() -> None:
    weight = TopWeight(1, 'a,"odd"\nname', 7, 0, None, 0.1, None, 0, "up", None, "t", True)
    content = tables.topk_table("magnitude").to_bytes([weight])
    assert b"\r" not in content
    (line,) = csv.DictReader(io.StringIO(content.decode(), newline=""))
    assert (line["parameter"], line["value"], line["score"], line["stable"]) == (weight.parameter, "0.1", "", "True")
    assert list(line) == [field.name for field in dataclasses.fields(TopWeight)]


def test_columns_that_an_earlier_version_did_not_have_get_their_defaults() -> None:
    point = DamagePoint("m", 1, "zero", "critical", None, 1, 2.0, 3.0, 0.1, 0.0, 0.2, 1.1)
    lines = tables.PERTURBATION.to_bytes([point]).decode().splitlines()
    earlier = "\n".join(line.rsplit(",", 4)[0] for line in lines)
    assert tables.PERTURBATION.from_bytes(earlier.encode()) == [point]


@pytest.mark.parametrize("damage", [b"m,ten,", b"m,1", b"m,1,zero,critical,,1,2,3,x,0,0,1,,,,0"])
def test_a_line_that_is_no_row_is_named(damage: bytes) -> None:
    heading = tables.PERTURBATION.to_bytes([])
    with pytest.raises(ValueError, match="line 2"):
        tables.PERTURBATION.from_bytes(heading + damage + b"\n")
