"""Lines, points, intervals, bars, steps and rules of a figure, with its axes and their ticks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from cwa_tui.charts.canvas import Canvas
from cwa_tui.charts.layout import BEYOND, Layout, Limits, Part, Spot, Window
from cwa_tui.charts.scale import AxisScale
from cwa_tui.tables.columns import shorten
from cwa_tui.text.visible import visible

LEAST_HEIGHT = 8
_AROUND = 4  # lines beside the plot: the title of y, the axis, its ticks, the title of x
_TICK_CELLS, _TICK_LINES = 12, 2  # room for a tick
_UP = " ▁▂▃▄▅▆▇█"
_FILLS = "█▓▒░"  # of bars, series by series
_MARKED = 6  # cells between two markers on a line that has no points of its own


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where places are in cells."""

    width: int
    height: int
    window: Window

    def x(self, place: float) -> float:
        (low, high), _ = self.window
        return (place - low) / (high - low) * (self.width - 1)

    def y(self, place: float) -> float:
        _, (low, high) = self.window
        return (high - place) / (high - low) * (self.height - 1)

    def at(self, spot: Spot) -> tuple[float, float]:
        return self.x(spot.x), self.y(spot.y)


def plot(layout: Layout, width: int, height: int, window: Window | None = None) -> list[Text]:
    """The figure in `height` lines. `window` is what is in sight, None for all."""
    window = window or layout.limits
    rows = max(LEAST_HEIGHT, height) - _AROUND
    y_ticks = _y_ticks(layout.y, window[1], rows, width // 3)
    gutter = max((len(label) for label in y_ticks.values()), default=0) + 1
    columns = max(8, width - gutter - 1)
    frame = _Frame(columns, rows, window)
    canvas = Canvas(columns, rows)
    _draw(canvas, frame, layout)
    titles = layout.figure.y.title + _scale(layout.y), layout.figure.x.title + _scale(layout.x)
    lines = [Text(shorten(visible(titles[0]), width, "end"), "dim")]
    lines += _with_axis(canvas, frame, y_ticks, gutter)
    lines += _below(layout.x, frame, gutter)
    return [*lines, Text(shorten(visible(titles[1]), width, "end").rjust(gutter + 1 + columns), "dim")]


def keys_of_names(layout: Layout, width: int) -> Mapping[str, str]:
    """Number -> name along x where names have no room below the axis; empty where they have."""
    room = width // max(1, len(layout.x.names)) - 1 if layout.x.is_named else 0
    if not layout.x.is_named or all(len(name) <= room for name in layout.x.names):
        return {}
    return {str(place): name for place, name in enumerate(layout.x.names, 1)}


def _scale(scale: AxisScale) -> str:
    """What an axis does to its values, in words."""
    if scale.kind == "symlog":
        return f", logarithmic beyond ±{scale.linear:g}"
    return ", logarithmic" if scale.kind == "log" else ""


# axes


def _y_ticks(scale: AxisScale, limits: Limits, rows: int, room: int) -> dict[int, str]:
    """Row -> label. Where names are more than rows, some have no label."""
    low, high = limits
    found: dict[int, str] = {}
    for place, label in scale.ticks(low, high, max(2, rows // _TICK_LINES)).items():
        row = round((high - place) / (high - low) * (rows - 1))
        found.setdefault(row, shorten(visible(label), max(8, room), "middle"))
    return found


def _with_axis(canvas: Canvas, frame: _Frame, ticks: Mapping[int, str], gutter: int) -> list[Text]:
    lines = []
    for row, drawn in enumerate(canvas.lines()):
        label = ticks.get(row, "")
        side = Text(label.rjust(gutter - 1) + (" ┤" if label else " │"), no_wrap=True)
        side.stylize("dim", gutter)
        lines.append(side.append_text(drawn))
    return lines


def _below(scale: AxisScale, frame: _Frame, gutter: int) -> list[Text]:
    """The axis with its ticks, and their labels, which never touch each other."""
    (low, high), _ = frame.window
    axis, labels, free = ["─"] * frame.width, [" "] * (gutter + 1 + frame.width), 0
    for place, label in _x_labels(scale, (low, high), frame.width).items():
        at = min(frame.width - 1, max(0, round(frame.x(place))))
        shown = visible(label)
        start = max(0, min(gutter + 1 + at - len(shown) // 2, len(labels) - len(shown)))
        if start >= free:
            axis[at] = "┬"
            labels[start : start + len(shown)] = shown
            free = start + len(shown) + 1
    return [
        Text(" " * gutter + "└" + "".join(axis), "dim", no_wrap=True),
        Text("".join(labels).rstrip(), no_wrap=True),
    ]


def _x_labels(scale: AxisScale, limits: Limits, width: int) -> dict[float, str]:
    found = scale.ticks(*limits, max(2, width // _TICK_CELLS))
    room = width // max(1, len(found)) - 1
    if scale.is_named and any(len(name) > room for name in scale.names):
        return {place: str(int(place) + 1) for place in found}
    return found


# marks


def _draw(canvas: Canvas, frame: _Frame, layout: Layout) -> None:
    """Bars lie below lines, lines below intervals, and points cover all."""
    shifts = _shifts(layout, frame)
    bars = [part for part in layout.parts if part.layer.mark == "bar"]
    for place, part in enumerate(bars):
        _bars(canvas, frame, layout, part, place, len(bars))
    for layer in layout.figure.layers:
        if layer.mark == "diagonal":
            _diagonal(canvas, frame, layout)
        place_of = (layout.x if layer.upright else layout.y).place(layer.at)
        if layer.mark == "rule" and place_of is not None:
            _rule(canvas, frame, place_of, layer.upright)
    for part in layout.parts:
        if part.layer.mark in ("line", "step"):
            _line(canvas, frame, layout, part, shifts[part.series])
    for part in layout.parts:
        if part.layer.low:
            _intervals(canvas, frame, layout, part, shifts[part.series])
    has_points = {part.series for part in layout.parts if part.layer.mark == "point"}
    for part in layout.parts:
        series, shift = layout.series[part.series], shifts[part.series]
        if part.layer.mark == "point":
            for x, y in map(frame.at, part.there):
                canvas.put(round(x) + shift, round(y), series.marker, series.style)
        elif part.layer.mark in ("line", "step") and part.series not in has_points and len(layout.series) > 1:
            _mark_line(canvas, frame, layout, part, shift)
        elif part.layer.mark == "beyond":
            for spot in part.spots:
                if math.isnan(spot.y):
                    canvas.put(round(frame.x(spot.x)) + shift, 0, BEYOND, series.style)
                    canvas.put(round(frame.x(spot.x)) + shift, 1, series.marker, series.style)


def _shifts(layout: Layout, frame: _Frame) -> list[int]:
    """How many cells each series stands to the right, so that intervals at one place lie beside each other."""
    count = len(layout.series)
    side_by_side = layout.x.is_named or any(part.layer.low for part in layout.parts)
    places = sorted({round(frame.x(spot.x)) for part in layout.parts for spot in part.spots})
    if not side_by_side or any(after - before <= count for before, after in itertools.pairwise(places)):
        return [0] * count
    return [place - count // 2 for place in range(count)]


def _rule(canvas: Canvas, frame: _Frame, place: float, upright: bool) -> None:
    if upright:
        for row in range(canvas.height):
            canvas.put(round(frame.x(place)), row, "┊", "dim")
    else:
        for column in range(canvas.width):
            canvas.put(column, round(frame.y(place)), "┈", "dim")


def _diagonal(canvas: Canvas, frame: _Frame, layout: Layout) -> None:
    """Where x and y are equal, in whatever scales."""
    (low, high), _ = frame.window
    places = [low + (high - low) * column / canvas.width for column in range(canvas.width + 1)]
    ends = [(place, layout.y.place(layout.x.value(place))) for place in places]
    points = [(frame.x(x), frame.y(y)) for x, y in ends if y is not None]
    for start, end in itertools.pairwise(points):
        canvas.line(start, end, "dim")


def _line(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: int) -> None:
    style = layout.series[part.series].style
    points = [(x + shift, y) for x, y in map(frame.at, part.spots)]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        if math.isnan(y) or math.isnan(to_y):
            continue
        if part.layer.mark == "step":
            canvas.line((x, y), (to_x, y), style, part.layer.dashed)
            canvas.line((to_x, y), (to_x, to_y), style, part.layer.dashed)
        else:
            canvas.line((x, y), (to_x, to_y), style, part.layer.dashed)


def _mark_line(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: int) -> None:
    """Its marker at some of its points, so that lines are told apart without colour."""
    series = layout.series[part.series]
    last = None
    for x, y in map(frame.at, part.there):
        if last is None or abs(round(x) - last) >= _MARKED:
            last = round(x)
            canvas.put(last + shift, round(y), series.marker, series.style)


def _intervals(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: int) -> None:
    for spot in part.spots:
        if spot.low is not None and spot.high is not None:
            top, bottom = sorted((round(frame.y(spot.low)), round(frame.y(spot.high))))
            for row in range(max(0, top), min(canvas.height - 1, bottom) + 1):
                canvas.put(round(frame.x(spot.x)) + shift, row, "│", layout.series[part.series].style)


def _bars(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, place: int, count: int) -> None:
    """Bars of several series stand side by side; one that is above zero has at least an eighth of a cell."""
    thick = max(1, int(_slot(layout.x, part.spots, frame) * 0.8 / count))
    low = frame.window[1][0]
    base = frame.y(low if layout.y.kind == "log" else max(low, 0.0))
    for x, y in map(frame.at, part.there):
        first = round(x - thick * count / 2 + 0.5) + place * thick
        for column in range(first, first + thick):
            _bar(canvas, column, base, y, _FILLS[part.series % len(_FILLS)], layout.series[part.series].style)


def _slot(scale: AxisScale, spots: Sequence[Spot], frame: _Frame) -> float:
    """Cells from one bar to the next."""
    if scale.is_named:
        return frame.width / max(1, len(scale.names))
    places = sorted({frame.x(spot.x) for spot in spots})
    return min((after - before for before, after in itertools.pairwise(places)), default=3.0)


def _bar(canvas: Canvas, column: int, start: float, end: float, fill: str, style: str) -> None:
    """One column of a bar. Upwards it ends within a cell, downwards with a whole one."""
    length, first = start - end, round(start)
    for cell in range(round(-length) if length < 0 else int(length)):
        canvas.put(column, first + (cell + 1 if length < 0 else -cell), fill, style)
    rest = int(length % 1 * 8)
    if length > 0 and (rest or length < 1):
        canvas.put(column, first - int(length), _UP[max(1, rest)] if fill == _FILLS[0] else fill, style)
