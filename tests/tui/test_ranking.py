"""A ranking kept as columns says the same as its rows, sorted and filtered as the obvious code does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.records.tables import topk_table
from cwa_engine.rows import TopWeight
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.ranking import COLUMNS, RankingRows

whole = st.integers(0, 2**40)
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.sampled_from(
    ["model.layers.0.mlp.down_proj.weight", "model.layers.11.mlp.down_proj.weight", "lm_head.weight"]
)


@st.composite
def weights(draw: st.DrawFn) -> list[TopWeight]:
    found = []
    for rank in range(1, draw(st.integers(0, 12)) + 1):
        parameter, out, inside = draw(names), draw(whole), draw(st.none() | whole)
        target = f"{parameter}[{out}]" if inside is None else f"{parameter}[{out},{inside}]"
        found.append(
            TopWeight(
                rank=rank,
                parameter=parameter,
                flat_index=draw(whole),
                out_feature=out,
                in_feature=inside,
                value=draw(finite),
                score=draw(st.none() | finite),
                layer=draw(st.none() | st.integers(0, 40)),
                component=draw(st.sampled_from(["down", "norm"])),
                expert=draw(st.none() | st.integers(0, 7)),
                target=draw(st.sampled_from([target, f"{parameter}[:,{out}]"])),
                stable=draw(st.none() | st.booleans()),
                fan_out=draw(st.none() | whole),
                standard_error=draw(st.none() | finite),
            )
        )
    return found


@given(weights())
def test_the_rows_are_those_of_the_file(rows: list[TopWeight]) -> None:
    table = topk_table("grad_x_weight")
    assert list(RankingRows.from_csv(table.to_bytes(rows))) == rows
    assert list(RankingRows.of(rows)) == rows


@given(weights(), st.sampled_from(COLUMNS), st.booleans())
def test_any_column_sorts_as_the_obvious_code_does_and_what_is_missing_comes_last(
    rows: list[TopWeight], column: str, descending: bool
) -> None:
    there = [row for row in rows if getattr(row, column) is not None]
    expected = sorted(there, key=lambda row: getattr(row, column), reverse=descending)
    ranking = RankingRows.of(rows)
    order = ranking.order(Sorting(column, descending))
    missing = [row for row in rows if getattr(row, column) is None]
    assert [ranking[place] for place in order] == expected + missing


@given(weights())
def test_words_and_columns_filter(rows: list[TopWeight]) -> None:
    ranking = RankingRows.of(rows)

    def left(text: str) -> list[TopWeight]:
        return [ranking[place] for place in ranking.order(None, text)]

    assert left("layers.11") == [row for row in rows if "layers.11" in row.target]
    assert left("DOWN") == [row for row in rows if "down" in f"{row.target} {row.component}"]
    assert left("layer:11") == [row for row in rows if row.layer == 11]
    assert left("score>0.5 component:norm") == [
        row for row in rows if row.score is not None and row.score > 0.5 and row.component == "norm"
    ]
    assert left("layer!=3") == [row for row in rows if row.layer != 3]
    assert left("nowhere") == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "line 1"),
        (b"a,b\n1,2\n", "rank"),
        (b"rank,parameter,value,score,target,component\nx,w,1,1,w[1],c\n", "line 2"),
    ],
)
def test_a_file_that_is_no_ranking_is_refused_by_its_line(content: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RankingRows.from_csv(content)
