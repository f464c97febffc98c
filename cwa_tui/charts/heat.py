"""A map of cells: a number in each as far as there is room, and behind it a block that grows darker with the number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from cwa_engine.figures.figure import Axis, Figure, Layer, is_in
from cwa_tui.charts.scale import AxisScale, categories, named, scale_of, short_number
from cwa_tui.tables.columns import shorten
from cwa_tui.text.visible import visible, words

SHADES, BELOW = "░▒▓█", "~=&$"  # by size: of numbers above 0, and of those below where both are on the map
ZERO, NOT_MEASURED, NOT_FINITE, NO_CELL = "·", "?", "×", " "
_UP_STYLE, _DOWN_STYLE = "bold", "bold red"


@dataclass(frozen=True, slots=True)
class _Shading:
    """Which shade stands for a number: of `most` in equal steps of the scale, from `least` on."""

    scale: AxisScale
    least: float
    most: float
    both: bool  # whether numbers below 0 have shades of their own

    def character(self, value: Any) -> str:
        if value is None:
            return NOT_MEASURED
        if not math.isfinite(value):
            return NOT_FINITE
        place = self.scale.place(value)
        if value == 0 or place is None:
            return ZERO
        size = abs(place) if self.both else place
        share = (size - self.least) / ((self.most - self.least) or 1.0)
        shades = BELOW if self.both and place < 0 else SHADES
        return shades[min(len(shades) - 1, max(0, math.ceil(share * len(shades)) - 1))]


def heat_map(figure: Figure, width: int) -> list[Text]:
    """The lines of a map, of at most `width` cells. What is across goes down where it does not fit otherwise."""
    across, down = (
        _places(axis, [getattr(row, axis.field) for row in figure.table.rows]) for axis in (figure.x, figure.y)
    )
    values = {_key(row, figure): _value(row, figure) for row in _cells(figure)}
    marks = {_key(row, figure): NOT_FINITE for layer in _over(figure) for row in figure.table.rows if is_in(layer, row)}
    shading, titles = _shading(figure), (visible(figure.x.title), visible(figure.y.title))
    lines = _grid(across, down, values, marks, shading, titles, width)
    if lines is None:
        turned = {(y, x): value for (x, y), value in values.items()}
        signs = {(y, x): sign for (x, y), sign in marks.items()}
        lines = _grid(down, across, turned, signs, shading, (titles[1], titles[0]), width)
    if lines is None:
        return [Text(f"the map has {len(across):,} by {len(down):,} cells, for which there is no room", "bold")]
    return lines


def shades(figure: Figure) -> list[Text]:
    """What each shade of a map stands for."""
    shading = _shading(figure)
    spans: dict[str, list[Any]] = {}
    for row in _cells(figure):
        value = _value(row, figure)
        spans.setdefault(shading.character(value), []).append(value)
    said = [words(f"{figure.colour.title}:", "dim")] if figure.colour and figure.colour.title else []
    for character in (*reversed(BELOW), *SHADES):
        if found := spans.get(character):
            said.append(Text(f"{character} {_span(min(found), max(found))}"))
    if found := spans.get(ZERO):
        said.append(Text(f"{ZERO} {'0' if min(found) == 0 else '0 or less'}"))
    if NOT_MEASURED in spans and len(spans[NOT_MEASURED]) > _marked(figure):
        said.append(Text(f"{NOT_MEASURED} not measured"))
    if NOT_FINITE in spans or _over(figure):
        names = dict.fromkeys(_name_of(layer.where) for layer in _over(figure))
        said.append(words(f"{NOT_FINITE} {' or '.join(names) or 'not finite'}"))
    return said


def _cells(figure: Figure) -> list[Any]:
    """The rows that have a cell."""
    layers = [layer for layer in figure.layers if layer.mark == "cell"]
    return [row for row in figure.table.rows if any(is_in(layer, row) for layer in layers)]


def _over(figure: Figure) -> list[Layer]:
    """Layers that mark cells."""
    return [layer for layer in figure.layers if layer.mark in ("point", "beyond")]


def _marked(figure: Figure) -> int:
    """How many cells have a mark instead of a number."""
    rows = [row for row in _cells(figure) if _value(row, figure) is None]
    return sum(any(is_in(layer, row) for layer in _over(figure)) for row in rows)


def _value(row: Any, figure: Figure) -> Any:
    return getattr(row, figure.colour.field) if figure.colour else 1


def _name_of(where: Sequence[tuple[str, Any]]) -> str:
    return ", ".join(field.replace("_", " ") if value is True else named(value) for field, value in where) or "marked"


def _span(first: float, last: float) -> str:
    low, high = short_number(first), short_number(last)
    return low if low == high else f"{low} to {high}"


def _key(row: Any, figure: Figure) -> tuple[str, str]:
    return named(getattr(row, figure.x.field)), named(getattr(row, figure.y.field))


def _places(axis: Axis, values: Sequence[Any]) -> list[str]:
    """The names along an axis; numbers from the smallest on."""
    if axis.scale == "category":
        return list(categories(axis, values))
    return [named(value) for value in sorted({value for value in values if value is not None})]


def _shading(figure: Figure) -> _Shading:
    if figure.colour is None:
        return _Shading(AxisScale("linear"), 0.0, 1.0, False)
    values = [getattr(row, figure.colour.field) for row in _cells(figure)]
    scale = scale_of(figure.colour, values)
    places = [place for value in values if (place := scale.place(value)) is not None]
    if scale.kind != "log" and min(places, default=0.0) < 0:
        return _Shading(scale, 0.0, max(map(abs, places)), True)
    least = min(places, default=0.0)
    return _Shading(scale, least if scale.kind == "log" else 0.0, max(places, default=1.0), False)


def _grid(
    head: Sequence[str],
    side: Sequence[str],
    values: Mapping[tuple[str, str], Any],
    marks: Mapping[tuple[str, str], str],
    shading: _Shading,
    titles: tuple[str, str],
    width: int,
) -> list[Text] | None:
    """The map with `head` across; None where it is too wide. Without room for numbers it has shades alone."""
    names = [visible(name) for name in side]
    whole = max(map(len, (*names, "")))
    lead = min(whole, max(8, width // 3))
    room = (width - lead - 1) // max(1, len(head))
    if room == (width - whole - 1) // max(1, len(head)):  # cells are no wider if names are cut
        lead = whole
    if room < 1:
        return None
    said = {key: _number(value) for key, value in values.items()}
    longest = max((len(text) for text in said.values()), default=0) + 2
    cell = min(room, max(longest, max(map(len, head), default=0) + 1))
    with_numbers = cell >= longest
    cell = cell if with_numbers else min(room, 2)
    named_axes = [f"{title} {way}" for title, way in zip(titles[::-1], ("down", "across"), strict=True) if title]
    lines = [*([Text(", ".join(named_axes), "dim")] if named_axes else []), *_head(head, lead, cell)]
    for name, shown in zip(side, names, strict=True):
        line = Text(shorten(shown, lead, "middle").rjust(lead) + " ", no_wrap=True)
        for column in head:
            key = column, name
            character = marks.get(key) or (shading.character(values[key]) if key in values else NO_CELL)
            text = said.get(key, "") if with_numbers and character not in (ZERO, NO_CELL) else ""
            style = "dim" if character == ZERO else _DOWN_STYLE if character in BELOW else _UP_STYLE
            line.append((character + text).rjust(cell) if with_numbers else character.rjust(cell), style)
        lines.append(line)
    return lines


def _head(head: Sequence[str], lead: int, cell: int) -> list[Text]:
    """The names across: all of them, or as many as do not touch each other."""
    line, free = [" "] * (lead + 1 + cell * len(head)), lead + 1
    for place, name in enumerate(map(visible, head)):
        end = lead + 1 + cell * (place + 1)
        start = end - len(name)
        if start >= free:
            line[start:end] = name
            free = end + 1
    return [Text("".join(line).rstrip(), "dim", no_wrap=True)]


def _number(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}" if abs(value) < 100 else short_number(value)
