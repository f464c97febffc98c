"""What of a figure is drawn where: its scales, its series with their markers, the places of rows, and what is not drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cwa_engine.figures.figure import Axis, Figure, Layer, along_of, is_in
from cwa_tui.charts.scale import AxisScale, categories, named, scale_of

MARKERS = "●○▼×+■abcdefghijklmnpqrstuwyz"  # each is another character in ASCII, too
FILLS = "█▓▒░"  # of bars
BEYOND, SEVERAL = "▲", "&"
STYLES = ("cyan", "yellow", "magenta", "green", "blue", "red")
_MOST_NAMED = 3  # rows that are not drawn
_BESIDE = 0.05  # of the axis, around what is drawn
Limits = tuple[float, float]
Window = tuple[Limits, Limits]  # what is in sight: along x and along y


@dataclass(frozen=True, slots=True)
class Series:
    """Rows of one name: a marker tells them from others, a colour helps."""

    name: str
    marker: str
    style: str


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a row stands, and the ends of its interval along the axis of numbers, on which it is NaN without a number."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None

    @property
    def is_there(self) -> bool:
        return not math.isnan(self.x + self.y)


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one layer and one series, in their order."""

    layer: Layer
    series: int
    spots: tuple[Spot, ...]

    @property
    def there(self) -> list[Spot]:
        """Those with a number."""
        return [spot for spot in self.spots if spot.is_there]


@dataclass(frozen=True, slots=True)
class Layout:
    """A figure, ready to be drawn. `notes` say what is not drawn, and why."""

    figure: Figure
    x: AxisScale
    y: AxisScale
    series: tuple[Series, ...]
    parts: tuple[Part, ...]
    limits: Window
    notes: tuple[str, ...]

    @property
    def is_map(self) -> bool:
        """Whether it is a map of cells."""
        return any(layer.mark == "cell" for layer in self.figure.layers)

    @property
    def has_points(self) -> bool:
        """Whether points of several series may lie in one cell."""
        return len({part.series for part in self.parts if part.layer.mark == "point"}) > 1

    @property
    def is_lying(self) -> bool:
        """Whether numbers are along x, beside names along y."""
        return along_of(self.figure) == "x"


def lay_out(figure: Figure) -> Layout:
    """What of a figure is drawn where."""
    rows = figure.table.rows
    x, y = (scale_of(axis, [getattr(row, axis.field) for row in rows]) for axis in (figure.x, figure.y))
    y = replace(y, names=y.names[::-1])  # the first stands at the top
    names = _series_names(figure)
    parts = tuple(_parts(figure, names[: len(MARKERS)], x, y))
    other_marks = {part.series for part in parts if part.layer.mark != "bar"}
    bars = {names[part.series] for part in parts if part.series not in other_marks}
    series = tuple(
        Series(name, FILLS[at % len(FILLS)] if name in bars else marker, STYLES[at % len(STYLES)])
        for at, (name, marker) in enumerate(zip(names, MARKERS, strict=False))
    )
    notes = tuple(_notes(figure, len(names) - len(series), x, y))
    return Layout(figure, x, y, series, parts, _limits(figure, x, y, parts), notes)


def _series_names(figure: Figure) -> list[str]:
    if figure.colour and figure.colour.scale == "category":
        return list(categories(figure.colour, [getattr(row, figure.colour.field) for row in figure.table.rows]))
    return list(dict.fromkeys(_layer_name(layer) for layer in figure.layers if layer.mark not in ("rule", "diagonal")))


def _layer_name(layer: Layer) -> str:
    """What a layer draws where colour does not tell series apart; rows at the edge are those of the others."""
    if layer.mark == "beyond":
        return ""
    return ", ".join(named(value) for _, value in layer.where)


def _parts(figure: Figure, names: Sequence[str], x: AxisScale, y: AxisScale) -> Iterator[Part]:
    """Layer by layer and series by series; rules and maps of cells are drawn in ways of their own."""
    by_colour = figure.colour is not None and figure.colour.scale == "category"
    along = along_of(figure)
    numbers = x if along == "x" else y
    for layer in figure.layers:
        if layer.mark in ("cell", "text", "rule", "diagonal"):
            continue
        spots: dict[str, list[Spot]] = {}
        for row in figure.table.rows:
            at = {"x": x.place(getattr(row, figure.x.field)), "y": y.place(getattr(row, figure.y.field))}
            if at[along] is None:
                at[along] = math.nan
            if not is_in(layer, row) or at["x"] is None or at["y"] is None:
                continue
            colour = getattr(row, figure.colour.field) if by_colour and figure.colour else None
            name = named(colour) if colour is not None else "" if by_colour else _layer_name(layer)
            low, high = (numbers.place(getattr(row, field)) if field else None for field in (layer.low, layer.high))
            spots.setdefault(name, []).append(Spot(at["x"], at["y"], low, high))
        for name, found in spots.items():
            if name in names:
                yield Part(layer, names.index(name), tuple(found))


def _limits(figure: Figure, x: AxisScale, y: AxisScale, parts: Sequence[Part]) -> Window:
    places: dict[str, list[float]] = {"x": [spot.x for part in parts for spot in part.spots]}
    places["y"] = [spot.y for part in parts for spot in part.spots]
    along = along_of(figure)
    places[along] += [end for part in parts for spot in part.spots for end in (spot.low, spot.high) if end is not None]
    for layer in figure.layers:
        place = (x if layer.upright else y).place(layer.at)
        if layer.mark == "rule" and place is not None:
            places["x" if layer.upright else "y"].append(place)
    if (x if along == "x" else y).kind != "log" and any(layer.mark == "bar" for layer in figure.layers):
        places[along].append(0.0)
    return _around(x, places["x"]), _around(y, places["y"])


def _around(scale: AxisScale, places: Sequence[float]) -> Limits:
    if scale.is_named:
        return -0.5, max(0, len(scale.names) - 1) + 0.5
    there = [place for place in places if not math.isnan(place)]
    if not there:
        return 0.0, 1.0
    low, high = min(there), max(there)
    room = _BESIDE * (high - low) or 0.1 * max(abs(high), 1.0)
    return low - room, high + room


def _notes(figure: Figure, more_series: int, x: AxisScale, y: AxisScale) -> Iterator[str]:
    """What of the table is not drawn; rows that stand at the edge are."""
    rows = figure.table.rows
    beyond = [layer for layer in figure.layers if layer.mark == "beyond"]
    along = along_of(figure)
    for name, scale, axis, other in (("x", x, figure.x, figure.y), ("y", y, figure.y, figure.x)):
        missing = [row for row in rows if scale.place(getattr(row, axis.field)) is None]
        if name == along:
            missing = [row for row in missing if not any(is_in(layer, row) for layer in beyond)]
        if missing:
            why = "not finite or not above 0" if scale.kind == "log" else "missing or not finite"
            which = "; ".join(_named_row(figure, other, row) for row in missing[:_MOST_NAMED])
            more = f" and {len(missing) - _MOST_NAMED:,} more" if len(missing) > _MOST_NAMED else ""
            what = axis.field.replace("_", " ")
            yield f"not drawn: {len(missing):,} of {len(rows):,} rows, whose {what} is {why}: {which}{more}"
    if more_series:
        yield f"{more_series:,} more series are in the table"


def _named_row(figure: Figure, axis: Axis, row: Any) -> str:
    """`critical at k 1000`."""
    colour = getattr(row, figure.colour.field) if figure.colour and figure.colour.scale == "category" else None
    series = f"{named(colour)} at " if colour is not None else ""
    return f"{series}{axis.field.replace('_', ' ')} {named(getattr(row, axis.field))}"
