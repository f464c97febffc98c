"""Tables of one line a row: nothing is folded, run ids are whole or short and never cut, what is cut has a sign."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from cwa_engine.records.run_id import short_id
from cwa_tui.cli.lines import RUN_ID, Field, LineTable, Row
from cwa_tui.cli.terminal import Terminal

FIELDS = [
    Field(RUN_ID), Field("state"), Field("model", least=10, cut="start"), Field("metrics", least=10, optional=2),
    Field("age", optional=1, right=True), Field("note", least=12),
]  # fmt: skip


def printed(table: LineTable, width: int, encoding: str = "utf-8") -> list[str]:
    out = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    terminal = Terminal(width=200, line_width=width)
    terminal.file = out
    terminal.print(table, crop=False)
    out.flush()
    return out.buffer.getvalue().decode(encoding).splitlines()


def row(run_id: str = "20261123-143205-smollm2-135m-k7q2", **cells: str) -> Row:
    usual = {"state": "✓ done", "model": "HuggingFaceTB/SmolLM2-135M", "metrics": "grad_x_weight, obd", "age": "3 min"}
    return Row({RUN_ID: run_id, **usual, **cells})


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Mn", "Me", "Cf"]), max_size=60)
run_ids = st.lists(st.from_regex(r"20261123-1[0-9]{5}-[a-z0-9.]{1,12}-[a-z2-9]{4}", fullmatch=True), max_size=4)


@given(run_ids, names, names, st.integers(60, 200), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_every_row_is_one_line_that_fits_and_begins_with_an_id_that_finds_the_run(
    ids: list[str], model: str, note: str, width: int, encoding: str
) -> None:
    lines = printed(LineTable(FIELDS, [row(run_id, model=model, note=note) for run_id in ids]), width, encoding)
    assert len(lines) == 1 + len(ids)
    assert all(cell_len(line) <= width for line in lines)
    for line, run_id in zip(lines[1:], ids, strict=True):
        assert line.split()[0] in (run_id, short_id(run_id))


def test_short_ids_stand_for_whole_ones_only_while_they_tell_runs_apart() -> None:
    apart, alike = ["20261123-1-a-k7q2", "20261123-2-b-p4rs"], ["20261123-1-a-k7q2", "20261123-2-b-k7q2"]
    assert [line.split()[0] for line in printed(LineTable(FIELDS, list(map(row, apart))), 60)][1:] == ["k7q2", "p4rs"]
    assert [line.split()[0] for line in printed(LineTable(FIELDS, list(map(row, alike))), 60)][1:] == alike


def test_columns_are_left_out_by_their_number_and_names_are_cut_with_a_sign() -> None:
    def headings(width: int) -> list[str]:
        return printed(LineTable(FIELDS, [row(note="a" * 40)]), width)[0].split()[2:]  # behind "run id"

    assert headings(200) == ["state", "model", "metrics", "age", "note"]
    assert headings(57) == ["state", "model", "age", "note"]
    assert headings(46) == ["state", "model", "note"]
    assert "…/SmolLM2-135M" in printed(LineTable(FIELDS, [row(note="a" * 40)]), 70)[1]


def test_a_message_of_many_lines_takes_one_and_ends_where_the_line_does() -> None:
    said = "the model ran\nout of memory\twhile it was loaded, and that is a long story"
    line = printed(LineTable(FIELDS, [row(note=said)]), 100)[1]
    assert "the model ran out of memory" in line and line.endswith("…")
    assert said.rsplit(maxsplit=1)[-1] in printed(LineTable(FIELDS, [row(note=said)]), 1000)[1]


def test_a_run_that_cannot_be_read_says_why_on_the_rest_of_its_line() -> None:
    broken = Row(
        {RUN_ID: "20261123-1-a-p4rs"}, sentence="! summary.json is altered since the run ended, and " + "so on " * 20
    )
    line = printed(LineTable(FIELDS, [row(), broken]), 80)[2]
    assert line.split()[:2] == ["p4rs", "!"] and "summary.json is altered" in line
    assert line.endswith("…") and len(line) == 80


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "…"), ("ascii", "...")])
def test_where_an_encoding_has_no_ellipsis_three_dots_still_fit(encoding: str, sign: str) -> None:
    line = printed(LineTable(FIELDS, [row(note="x" * 100)]), 70, encoding)[1]
    assert line.endswith(sign) and len(line) == 70
