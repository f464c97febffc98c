"""The answer of a study: its tables, and what a figure of one of them draws. No Textual in it."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwa_engine.questions.question import TableRows
from cwa_tui.tables.columns import Column, Cut
from cwa_tui.tables.rows import TableRow, ViewTable
from cwa_tui.text import format as fmt

LOW, HIGH = "low", "high"  # fields with the ends of an interval, or ends of their names: `slope_low`
ACROSS = ("parameters", "step", "tokens", "k", "sequences")  # fields that a figure has across, best first
SERIES = ("family", "metric", "k", "perturbation", "selection", "others")  # fields that tell series apart
MOST_SERIES = 4
_APART = 10.0  # a logarithmic axis is used where the largest is at least so many times the smallest


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
    wanted = list(dict.fromkeys([*first, *(_with_interval(names) or ()), *names]))
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


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """Points of a table by series. `names` are those of places across, where these are no numbers."""

    across: str
    up: str
    series: Mapping[str, tuple[Point, ...]]
    names: Mapping[float, str]
    log_x: bool
    log_y: bool
    left_out: int  # rows without a finite number


def figure_of(tables: Sequence[TableRows[Any]]) -> Figure | None:
    """The figure of the first table with figures that have intervals; None where there is none.

    Across is the first field of `ACROSS` with two values or more, else the rows one after the other. Rows of one series
    have the fields of `SERIES` in common.
    """
    return next((figure for table in tables if (figure := _figure(table))), None)


def _figure(found: TableRows[Any]) -> Figure | None:
    names = [field.name for field in dataclasses.fields(found.table.row)]
    if (measured := _with_interval(names)) is None or not found.rows:
        return None
    up, low, high = measured
    rows = [{name: getattr(row, name) for name in names} for row in found.rows]
    across = next((name for name in ACROSS if name in names and _is_axis([row[name] for row in rows])), "")
    varying = [name for name in SERIES if name in names and name != across and len({row[name] for row in rows}) > 1]
    named = [name for name in names if isinstance(rows[0][name], str)]
    places: dict[str, float] = {}
    series: dict[str, list[Point]] = {}
    for row in rows:
        if not fmt.is_known(row[up]):
            continue
        label = " ".join(str(row[name]) for name in named)
        x = float(row[across]) if across else places.setdefault(label, float(len(places)))
        key = ", ".join(f"k {row[name]:,}" if name == "k" else str(row[name]) for name in varying)
        point = Point(x, float(row[up]), _finite(row[low]), _finite(row[high]))
        series.setdefault(key if across else "", []).append(point)
    if not series:
        return None
    points = [point for these in series.values() for point in these]
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    return Figure(
        across=across or "row",
        up=up,
        series={key: tuple(sorted(these, key=lambda point: point.x)) for key, these in series.items()},
        names={} if across else {place: label for label, place in places.items()},
        log_x=bool(across) and _is_wide([point.x for point in points]),
        log_y=_is_wide(ends),
        left_out=len(rows) - len(points),
    )


def _with_interval(names: Sequence[str]) -> tuple[str, str, str] | None:
    """(figure, low, high): `slope` with `slope_low` and `slope_high`, or what stands before `low` and `high`."""
    for name in names:
        low, high = f"{name}_{LOW}", f"{name}_{HIGH}"
        if low in names and high in names:
            return name, low, high
    for place, name in enumerate(names):
        stem = name.removesuffix(LOW)
        if place and name.endswith(LOW) and f"{stem}{HIGH}" in names:
            return names[place - 1], name, f"{stem}{HIGH}"
    return None


def _is_axis(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values) and len(set(values)) > 1


def _finite(value: float | None) -> float | None:
    return value if fmt.is_known(value) else None


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _APART
