"""Tables of a page: rows of records as cells, numbers short and exact at once. torch-free."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cwa_engine.questions.question import TableRows
from cwa_engine.reports.page_parts import Cell, Heading, TableBlock

MISSING = "–"
NOT_FINITE = "not finite"
MOST_ROWS = 100  # of a table on a page; its CSV has all
_CELLS = 4000  # of a table with many columns fewer rows are shown


def number(value: float | None) -> str:
    """Four significant digits; a whole number with all of its digits."""
    if value is None:
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if math.isfinite(value) else NOT_FINITE


def signed(value: float | None) -> str:
    """A change of the loss, with its sign: `+1.5314`, and `-2.31e-06` where four decimals would say nothing."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return NOT_FINITE
    return f"{value:+.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:+.2e}"


def ratio(value: float | None) -> str:
    """A perplexity over that of the intact model: `1.0001` beside one, else four significant digits."""
    near = value is not None and math.isfinite(value) and abs(value - 1) < 0.1
    return f"{value:.4f}" if near else number(value)


def interval(low: float | None, high: float | None) -> str:
    """`[+1.3318, +1.7153]`."""
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    return f"[{signed(low)}, {signed(high)}]" if known else MISSING


def percent(value: float | None) -> str:
    """`12.5 %`."""
    if value is None:
        return MISSING
    return f"{100 * value:.4g} %" if math.isfinite(value) else NOT_FINITE


def shown(value: Any) -> str:
    """Any value of a record."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
    return str(value)


@dataclass(frozen=True)
class Column:
    """How a column is made of a row: by the name of a field, or by a function of the row."""

    label: str
    value: str | Callable[[Any], Any]
    show: Callable[[Any], str] = shown
    is_number: bool = True

    def cell(self, row: Any) -> Cell:
        value = self.value(row) if callable(self.value) else getattr(row, self.value)
        return cell(value, self.show)


def text(label: str, value: str | Callable[[Any], Any]) -> Column:
    """A column of texts."""
    return Column(label, value, is_number=False)


def ends(label: str, low: str, high: str) -> Column:
    """A column of 95 % intervals; they are sorted by their lower end."""
    return Column(label, lambda row: (getattr(row, low), getattr(row, high)), lambda pair: interval(*pair))


def cell(value: Any, show: Callable[[Any], str] = shown) -> Cell:
    """A value as it is shown, with the number itself behind it."""
    exact = value[0] if isinstance(value, tuple) and value else value
    is_number = isinstance(exact, int | float) and not isinstance(exact, bool) and math.isfinite(exact)
    return Cell(show(value), exact if is_number else None)


def table(
    title: str,
    rows: Sequence[Any],
    columns: Iterable[Column],
    whole: str = "",
    note: str = "",
    most: int = MOST_ROWS,
    total: int | None = None,
) -> TableBlock:
    """A table of the first rows. Columns without a value in any of them are left out.

    `total` is how many rows there are, where `rows` are not all.
    """
    head = rows[:most]
    found = [(column, [column.cell(row) for row in head]) for column in columns]
    kept = [(column, cells) for column, cells in found if any(cell.text not in ("", MISSING) for cell in cells)]
    headings = tuple(Heading(column.label, column.is_number) for column, _ in kept)
    lines = tuple(zip(*(cells for _, cells in kept), strict=True))
    return TableBlock(title, headings, lines, len(rows) if total is None else total, whole, note)


def table_of(found: TableRows[Any], title: str = "", whole: str = "", most: int = MOST_ROWS) -> TableBlock:
    """Any table of records: a column for each of its own; what all rows have in common stands in the title."""
    columns = found.table.columns
    most = min(most, max(10, _CELLS // len(columns)))
    values = [_values(row, columns) for row in found.rows]
    common = {
        name: column[0]
        for name, column in zip(columns, zip(*values, strict=True), strict=False)
        if len(column) > 1 and not isinstance(column[0], float) and all(value == column[0] for value in column)
    }
    kinds = _kinds(found, columns)
    places = [place for place, name in enumerate(columns) if name not in common]
    shown_columns = [Column(_label(columns[place]), _at(place), is_number=columns[place] in kinds) for place in places]
    same = ", ".join(f"{_label(name)} {shown(value)}" for name, value in common.items() if value not in (None, ""))
    title = title or _label(found.table.name.removesuffix(".csv"))
    return table(title, values, shown_columns, whole, f"The same in all rows: {same}." if same else "", most)


def _at(place: int) -> Callable[[Sequence[Any]], Any]:
    return lambda values: values[place]


def _label(name: str) -> str:
    return name.replace("_", " ")


def _kinds(found: TableRows[Any], columns: Sequence[str]) -> set[str]:
    """The columns of numbers."""
    hints = typing.get_type_hints(found.table.row)
    fixed = {name for name, hint in hints.items() if not {int, float}.isdisjoint({hint, *typing.get_args(hint)})}
    return fixed | {name for name in columns if name not in hints}


def _values(row: Any, columns: Sequence[str]) -> list[Any]:
    """In the order of the table's columns, with the scores behind."""
    names = [name for name in columns if hasattr(row, name)]
    scores = getattr(row, "scores", ()) if len(names) < len(columns) else ()
    return [*(getattr(row, name) for name in names), *scores]
