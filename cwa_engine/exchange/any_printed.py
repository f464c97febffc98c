"""Any table of rows as a table to print: intervals beside their numbers, and what all rows share said in the caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from cwa_engine.base.table import Table
from cwa_engine.exchange.printed import Cell, Number, PrintedTable

MOST_ROWS = 50
_LOW, _HIGH = "low", "high"


def any_printed(name: str, table: Table[Any], rows: Sequence[Any], caption: str) -> PrintedTable:
    """A column for each field that has values which differ. `slope`, `slope_low` and `slope_high` are one column."""
    fields = [field.name for field in dataclasses.fields(table.row)]
    intervals = _intervals(fields)
    ends = {end for pair in intervals.values() for end in pair}
    shown, common = [], []
    for field in (field for field in fields if field not in ends):
        values = [getattr(row, field) for row in rows]
        if all(value in (None, "") for value in values):
            continue
        if len(rows) > 1 and field not in intervals and _same(values) and not isinstance(values[0], float):
            common.append(f"{_heading(field)} {_text(values[0])}")
        else:
            shown.append(field)
    printed = tuple(tuple(_cell(row, field, intervals.get(field)) for field in shown) for row in rows[:MOST_ROWS])
    notes = [caption]
    if common:
        notes.append(f"All rows have {', '.join(common)}.")
    if len(rows) > MOST_ROWS:
        notes.append(f"The first {MOST_ROWS} of {len(rows):,} rows; the CSV table has all.")
    return PrintedTable(name, " ".join(notes), tuple(map(_heading, shown)), printed)


def _intervals(fields: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Field -> the fields with the ends of its interval: those of its name with `_low`, else the two that follow it."""
    found = {}
    for place, low in enumerate(fields):
        stem = low.removesuffix(_LOW)
        if stem == low or f"{stem}{_HIGH}" not in fields or not place:
            continue
        named = stem.rstrip("_")
        found[named if named in fields else fields[place - 1]] = (low, f"{stem}{_HIGH}")
    return found


def _cell(row: Any, field: str, ends: tuple[str, str] | None) -> Cell:
    value = getattr(row, field)
    if isinstance(value, float):
        low, high = (getattr(row, end) for end in ends) if ends else (None, None)
        return Number(value, low, high, digits=4)
    return value if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case tuple() | list():
            return ", ".join(map(_text, value))
        case float():
            return f"{value:.4g}"
    return str(value)


def _heading(field: str) -> str:
    return field.replace("_", " ")


def _same(values: Sequence[Any]) -> bool:
    return all(value == values[0] for value in values)
