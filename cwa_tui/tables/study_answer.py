"""The tables of a study's answer as columns and rows of texts. No Textual in it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from cwa_engine.figures.kinds.study_answer import ACROSS, SERIES, with_interval
from cwa_engine.questions.question import TableRows
from cwa_tui.tables.columns import Column, Cut
from cwa_tui.tables.rows import TableRow, ViewTable
from cwa_tui.text import format as fmt


def answer_table(found: TableRows[Any]) -> ViewTable:
    """A column for each field of the rows. Texts are as long as they are; numbers are shown short, and kept exactly.

    What all rows have in common stands in the title, and columns without a value are hidden. Where there is no room for all
    others, these stay: what rows are of, what was measured and its interval, then the others in the order of the fields.
    """
    hints = typing.get_type_hints(found.table.row)
    names = [field.name for field in dataclasses.fields(found.table.row)]
    rows = []
    for place, row in enumerate(found.rows):
        values = {name: getattr(row, name) for name in names}
        rows.append(TableRow(str(place), {name: _shown(value) for name, value in values.items()}, values=values))
    cells = {name: [row.cells[name] for row in rows] for name in names}
    common = {
        name: of[0] for name, of in cells.items() if len(of) > 1 and len(set(of)) == 1 and not _is_figure(hints[name])
    }
    empty = [name for name in names if all(row.values[name] in (None, "") for row in rows)]
    hidden = {*common, *empty}
    first = [name for name in ("model", *ACROSS, *SERIES) if name in names and name not in hidden]
    wanted = list(dict.fromkeys([*first, *(with_interval(names) or ()), *names]))
    columns = tuple(_column(name, wanted.index(name), hints[name], cells[name], name in hidden) for name in names)
    title = found.table.name.removesuffix(".csv").replace("_", " ")
    same = ", ".join(f"{name.replace('_', ' ')} {cell}" for name, cell in common.items() if name not in empty)
    return ViewTable(f"{title} · of all: {same}" if same else title, columns, tuple(rows))


def _is_figure(kind: object) -> bool:
    """Whether a field has measured numbers, which are shown though they be equal."""
    return float in (kind, *typing.get_args(kind))


def _column(name: str, place: int, kind: object, cells: Sequence[str], hidden: bool) -> Column:
    """`place` is that among the columns by how much they are wanted; the first is always there."""
    is_number = not {int, float}.isdisjoint({kind, *typing.get_args(kind)})
    label = name.replace("_", " ")
    longest = max(map(len, (label, *cells)))
    if is_number:
        return Column(name, label, min(longest, 12), most=longest, right=True, optional=place, hidden=hidden)
    cut: Cut = "start" if name == "model" else "middle"
    return Column(name, label, min(longest, 16), most=longest, cut=cut, optional=place, hidden=hidden)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return fmt.number(value)
    return str(value)
