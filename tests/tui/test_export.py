"""What is exported reads back as what was there, by other programs' readers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cwa_engine.base.errors import InvalidInput, OutputError
from cwa_engine.exchange.formats import FORMATS, SUFFIXES, export
from cwa_tui.tables.export import export_folder, write_export

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CELL = TEXT | st.integers() | st.floats() | st.booleans() | st.none()
COLUMNS = st.lists(TEXT.filter(str.strip), min_size=1, max_size=4, unique=True)
TABLE = COLUMNS.flatmap(
    lambda columns: st.tuples(
        st.just(columns), st.lists(st.tuples(*[CELL for _ in columns]), max_size=5)
    )
)  # fmt: skip
ODD = (
    "a|b",
    "back\\slash",
    "back\\|pipe",
    "two\nlines",
    "cr\r\nlf",
    "`tick`",
    "*star*",
    "<b>",
    "&amp;",
    "~~no~~",
    "ünï",
)


@given(TABLE)
def test_csv_reads_back_with_every_text_and_every_number_to_the_last_bit(table: tuple[list[str], list[Any]]) -> None:
    columns, rows = table
    heading, *lines = csv.reader(io.StringIO(export(columns, rows, "csv"), newline=""))
    assert heading == columns
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        for text, cell in zip(line, row, strict=True):
            if isinstance(cell, float):
                assert same(float(text), cell)
            else:
                assert text == ("" if cell is None else str(cell))


@given(TABLE)
def test_json_reads_back_and_is_strict(table: tuple[list[str], list[Any]]) -> None:
    columns, rows = table
    read = json.loads(export(columns, rows, "json"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [list(entry) for entry in read] == [columns] * len(rows)
    for entry, row in zip(read, rows, strict=True):
        for found, cell in zip(entry.values(), row, strict=True):
            if isinstance(cell, float):
                assert same(float(found), cell)
            else:
                assert found == cell and type(found) is type(cell)


@pytest.mark.parametrize("odd", ODD)
def test_markdown_shows_each_cell_as_it_is_in_its_place(odd: str) -> None:
    assert cells_of(export((odd, "score"), [(odd, 0.1), ("plain", -2)], "markdown")) == [
        [shown(odd), "score"],
        [shown(odd), "0.1"],
        ["plain", "-2"],
    ]


@given(st.lists(st.text("ab|\\`*<&\n\r~", max_size=8), min_size=1, max_size=4))
def test_markdown_keeps_the_number_of_cells_and_rows_whatever_they_hold(row: list[str]) -> None:
    columns = [f"c{place}" for place in range(len(row))]
    found = cells_of(export(columns, [row, row], "markdown"))
    assert [len(line) for line in found] == [len(row)] * 3
    assert found[1] == found[2] == [shown(cell) for cell in row]


def test_numbers_are_exact_and_not_those_of_numpy() -> None:
    rows: list[tuple[Any, ...]] = [(np.float64(0.1), np.int64(3), np.float32(0.1), 1e-17)]
    assert export("abcd", rows, "csv") == "a,b,c,d\n0.1,3,0.10000000149011612,1e-17\n"
    assert "| 0.1 | 3 | 0.10000000149011612 | 1e-17 |" in export("abcd", rows, "markdown")
    assert json.loads(export("abcd", rows, "json")) == [{"a": 0.1, "b": 3, "c": 0.10000000149011612, "d": 1e-17}]


def test_what_json_cannot_hold_is_refused_and_an_unknown_format_names_the_known() -> None:
    with pytest.raises(InvalidInput, match="two columns are called 'k'"):
        export(("k", "k"), [(1, 2)], "json")
    with pytest.raises(InvalidInput, match="no format 'cvs'") as refused:
        export(("k",), [], "cvs")
    assert "csv" in refused.value.hint
    assert set(SUFFIXES) == set(FORMATS)


def test_a_second_export_overwrites_nothing(tmp_path: Path) -> None:
    names = [write_export(tmp_path, "topk.csv", text).name for text in ("one", "two", "three")]
    assert names == ["topk.csv", "topk-2.csv", "topk-3.csv"]
    assert [(tmp_path / name).read_text() for name in names] == ["one", "two", "three"]


def test_a_name_from_elsewhere_stays_in_the_folder(tmp_path: Path) -> None:
    path = write_export(tmp_path, "../../etc/pass wd\x1b.csv", "text")
    assert path.parent == tmp_path and path.name == "_.._etc_pass_wd_.csv"
    assert write_export(tmp_path, "..", "text").parent == tmp_path


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere/topk\.csv cannot be written"):
        write_export(tmp_path / "nowhere", "topk.csv", "text")


def test_exports_go_to_the_working_folder_or_where_it_is_read_only_to_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path / "state"))
    assert export_folder() == tmp_path
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert export_folder() == tmp_path / "state" / "exports"
    assert export_folder().is_dir()


def same(first: float, second: float) -> bool:
    return (math.isnan(first) and math.isnan(second)) or (first, math.copysign(1, first)) == (
        second,
        math.copysign(1, second),
    )


def shown(text: str) -> str:
    """What a reader sees of a cell: line breaks are there, blanks at its ends are not."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def cells_of(markdown: str) -> list[list[str]]:
    """The cells of a table, read by markdown-it."""
    rows: list[list[str]] = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            parts = ["\n" if child.content == "<br>" else child.content for child in token.children or ()]
            rows[-1].append("".join(parts).strip())
    return rows
