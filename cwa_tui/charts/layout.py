"""What of a figure is drawn where: its scales, its series with their markers, the places of rows, and what is not drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cwa_engine.figures.figure import Axis, Figure, Layer, is_in
from cwa_tui.charts.scale import AxisScale, categories, named, scale_of

MARKERS = "●■○▼×+abcdefghijklmnpqrstuwyz"  # each is another character in ASCII, too
BEYOND = "▲"
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
    """Where a row stands, and the ends of its interval along y. Without a value y is NaN: a line is interrupted there."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one layer and one series, in their order."""

    layer: Layer
    series: int
    spots: tuple[Spot, ...]

    @property
    def there(self) -> list[Spot]:
        """Those with a value."""
        return [spot for spot in self.spots if not math.isnan(spot.y)]


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


def lay_out(figure: Figure) -> Layout:
    """What of a figure is drawn where."""
    rows = figure.table.rows
    ends = [end for layer in figure.layers for end in (layer.low, layer.high) if end]
    x = scale_of(figure.x, [getattr(row, figure.x.field) for row in rows])
    y = scale_of(figure.y, [getattr(row, field) for row in rows for field in (figure.y.field, *ends)])
    names = _series_names(figure)
    series = tuple(
        Series(name, marker, STYLES[at % len(STYLES)])
        for at, (name, marker) in enumerate(zip(names, MARKERS, strict=False))
    )
    parts = tuple(_parts(figure, names[: len(series)], x, y))
    notes = tuple(_notes(figure, len(names) - len(series), x, y))
    return Layout(figure, x, y, series, parts, _limits(figure, x, y, parts), notes)


def _series_names(figure: Figure) -> list[str]:
    if figure.colour and figure.colour.scale == "category":
        return list(categories(figure.colour, [getattr(row, figure.colour.field) for row in figure.table.rows]))
    return list(dict.fromkeys(_layer_name(layer) for layer in figure.layers if layer.mark not in ("rule", "diagonal")))


def _layer_name(layer: Layer) -> str:
    return ", ".join(named(value) for _, value in layer.where)


def _parts(figure: Figure, names: Sequence[str], x: AxisScale, y: AxisScale) -> Iterator[Part]:
    """Layer by layer and series by series; rules and maps of cells are drawn in ways of their own."""
    by_colour = figure.colour is not None and figure.colour.scale == "category"
    for layer in figure.layers:
        if layer.mark in ("cell", "text", "rule", "diagonal"):
            continue
        spots: dict[str, list[Spot]] = {}
        for row in figure.table.rows:
            at_x, at_y = x.place(getattr(row, figure.x.field)), y.place(getattr(row, figure.y.field))
            if not is_in(layer, row) or at_x is None:
                continue
            colour = getattr(row, figure.colour.field) if by_colour and figure.colour else None
            name = named(colour) if colour is not None else "" if by_colour else _layer_name(layer)
            low, high = (y.place(getattr(row, field)) if field else None for field in (layer.low, layer.high))
            spots.setdefault(name, []).append(Spot(at_x, math.nan if at_y is None else at_y, low, high))
        for name, found in spots.items():
            if name in names:
                yield Part(layer, names.index(name), tuple(found))


def _limits(figure: Figure, x: AxisScale, y: AxisScale, parts: Sequence[Part]) -> Window:
    xs = [spot.x for part in parts for spot in part.spots]
    ys = [spot.y for part in parts for spot in part.there]
    ys += [end for part in parts for spot in part.spots for end in (spot.low, spot.high) if end is not None]
    for layer in figure.layers:
        place = (x if layer.upright else y).place(layer.at)
        if layer.mark == "rule" and place is not None:
            (xs if layer.upright else ys).append(place)
    if y.kind != "log" and any(layer.mark == "bar" for layer in figure.layers):
        ys.append(0.0)
    return _around(x, xs), _around(y, ys)


def _around(scale: AxisScale, places: Sequence[float]) -> Limits:
    if scale.is_named:
        return -0.5, max(0, len(scale.names) - 1) + 0.5
    if not places:
        return 0.0, 1.0
    low, high = min(places), max(places)
    room = _BESIDE * (high - low) or 0.1 * max(abs(high), 1.0)
    return low - room, high + room


def _notes(figure: Figure, more_series: int, x: AxisScale, y: AxisScale) -> Iterator[str]:
    """What of the table is not drawn; rows that stand beyond the upper edge are."""
    rows = figure.table.rows
    beyond = [layer for layer in figure.layers if layer.mark == "beyond"]
    for scale, axis, other in ((x, figure.x, figure.y), (y, figure.y, figure.x)):
        missing = [row for row in rows if scale.place(getattr(row, axis.field)) is None]
        if axis is figure.y:
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
