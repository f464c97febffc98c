"""Lines, points, intervals, bars, steps and rules of a figure, with its axes and their ticks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from cwa_tui.charts.canvas import Canvas
from cwa_tui.charts.layout import BEYOND, FILLS, SEVERAL, Layout, Limits, Part, Spot, Window
from cwa_tui.charts.scale import AxisScale
from cwa_tui.tables.columns import shorten
from cwa_tui.text.visible import visible

LEAST_HEIGHT = 8
_AROUND = 4  # lines beside the plot: the title of y, the axis, its ticks, the title of x
_TICK_CELLS, _TICK_LINES = 12, 2  # room for a tick
_UP, _ACROSS = " ▁▂▃▄▅▆▇█", " ▏▎▍▌▋▊▉█"
_SPARE = 6  # cells that labels along y may take more than is known before all is drawn
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
    lines += _below(frame, gutter, _x_labels(layout, frame, width))
    return [*lines, Text(shorten(visible(titles[1]), width, "end").rjust(gutter + 1 + columns), "dim")]


def wanted_height(layout: Layout) -> int:
    """Lines in which names along y have room for every series beside each other; 0 where there are none."""
    return len(layout.y.names) * (len(layout.series) + 1) + _AROUND if layout.is_lying else 0


def keys_of_names(layout: Layout, width: int) -> Mapping[str, str]:
    """Number -> name along x where names have no room below the axis; empty where they have."""
    names = layout.x.names
    if not names:
        return {}
    labels = _y_ticks(layout.y, layout.limits[1], LEAST_HEIGHT, width // 3).values()
    room = (width - max(map(len, labels), default=0) - _SPARE) // len(names) - 1
    return {} if all(len(name) <= room for name in names) else {str(at): name for at, name in enumerate(names, 1)}


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


def _below(frame: _Frame, gutter: int, ticks: Mapping[float, str]) -> list[Text]:
    """The axis with its ticks, and their labels, which never touch each other."""
    axis, labels, free = ["─"] * frame.width, [" "] * (gutter + 1 + frame.width), 0
    for place, label in ticks.items():
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


def _x_labels(layout: Layout, frame: _Frame, width: int) -> Mapping[float, str]:
    """The ticks along x; instead of names their numbers, where these are explained below."""
    found = layout.x.ticks(*frame.window[0], max(2, frame.width // _TICK_CELLS))
    return {place: str(int(place) + 1) for place in found} if keys_of_names(layout, width) else found


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
        at = (layout.x if layer.upright else layout.y).place(layer.at)
        if layer.mark == "rule" and at is not None:
            _rule(canvas, frame, at, layer.upright)
    for part in layout.parts:
        if part.layer.mark in ("line", "step"):
            _line(canvas, frame, layout, part, shifts[part.series])
    for part in layout.parts:
        if part.layer.low:
            _intervals(canvas, frame, layout, part, shifts[part.series])
    taken: dict[tuple[int, int], int] = {}  # cell -> the series whose point is there
    has_points = {part.series for part in layout.parts if part.layer.mark == "point"}
    for part in layout.parts:
        series, (right, down) = layout.series[part.series], shifts[part.series]
        if part.layer.mark == "point":
            for x, y in map(frame.at, part.there):
                cell = round(x) + right, round(y) + down
                alone = taken.setdefault(cell, part.series) == part.series
                canvas.put(*cell, series.marker if alone else SEVERAL, series.style if alone else "bold")
        elif part.layer.mark in ("line", "step") and part.series not in has_points and len(layout.series) > 1:
            _mark_line(canvas, frame, layout, part, shifts[part.series])
        elif part.layer.mark == "beyond":
            _beyond(canvas, frame, layout, part, shifts[part.series])


def _shifts(layout: Layout, frame: _Frame) -> list[tuple[int, int]]:
    """How many cells each series stands to the right and down, so that intervals at one place lie beside each other."""
    count, lying = len(layout.series), layout.is_lying
    side_by_side = lying or layout.x.is_named or any(part.layer.low for part in layout.parts)
    places = sorted(
        {round(frame.y(spot.y) if lying else frame.x(spot.x)) for part in layout.parts for spot in part.spots}
    )
    if not side_by_side or any(after - before < count for before, after in itertools.pairwise(places)):
        return [(0, 0)] * count
    steps = [place - count // 2 for place in range(count)]
    return [(0, step) if lying else (step, 0) for step in steps]


def _beyond(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: tuple[int, int]) -> None:
    """A triangle at the edge where numbers end, and the marker of the series below or before it."""
    series, (right, down) = layout.series[part.series], shift
    for spot in part.spots:
        if spot.is_there:
            continue
        if layout.is_lying:
            row = round(frame.y(spot.y)) + down
            canvas.write(canvas.width - 2, row, series.marker + BEYOND, series.style)
        else:
            column = round(frame.x(spot.x)) + right
            canvas.put(column, 0, BEYOND, series.style)
            canvas.put(column, 1, series.marker, series.style)


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


def _line(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: tuple[int, int]) -> None:
    style, (right, down) = layout.series[part.series].style, shift
    points = [(x + right, y + down) for x, y in map(frame.at, part.spots)]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        if math.isnan(x + y + to_x + to_y):
            continue
        if part.layer.mark == "step":
            canvas.line((x, y), (to_x, y), style, part.layer.dashed)
            canvas.line((to_x, y), (to_x, to_y), style, part.layer.dashed)
        else:
            canvas.line((x, y), (to_x, to_y), style, part.layer.dashed)


def _mark_line(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: tuple[int, int]) -> None:
    """Its marker at some of its points, so that lines are told apart without colour."""
    series, (right, down) = layout.series[part.series], shift
    last = None
    for x, y in map(frame.at, part.there):
        if last is None or abs(round(x) - last) >= _MARKED:
            last = round(x)
            canvas.put(last + right, round(y) + down, series.marker, series.style)


def _intervals(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, shift: tuple[int, int]) -> None:
    lying, style, (right, down) = layout.is_lying, layout.series[part.series].style, shift
    size = canvas.width if lying else canvas.height
    for spot in part.spots:
        if spot.low is None or spot.high is None:
            continue
        ends = sorted(round(frame.x(end) if lying else frame.y(end)) for end in (spot.low, spot.high))
        for cell in range(max(0, ends[0]), min(size - 1, ends[1]) + 1):
            if lying:
                canvas.put(cell, round(frame.y(spot.y)) + down, "─", style)
            else:
                canvas.put(round(frame.x(spot.x)) + right, cell, "│", style)


def _bars(canvas: Canvas, frame: _Frame, layout: Layout, part: Part, place: int, count: int) -> None:
    """Bars of several series stand side by side; one that is above zero has at least an eighth of a cell."""
    lying, style = layout.is_lying, layout.series[part.series].style
    thick = max(1, int(_slot(layout, part.spots, frame) * 0.8 / count))
    low = frame.window[0 if lying else 1][0]
    from_ = low if (layout.x if lying else layout.y).kind == "log" else max(low, 0.0)
    base = frame.x(from_) if lying else frame.y(from_)
    for x, y in map(frame.at, part.there):
        first = round((y if lying else x) - thick * count / 2 + 0.5) + place * thick
        for line in range(first, first + thick):
            _bar(canvas, line, (base, x if lying else y), FILLS[part.series % len(FILLS)], style, lying)


def _slot(layout: Layout, spots: Sequence[Spot], frame: _Frame) -> float:
    """Cells from one bar to the next."""
    scale, size = (layout.y, frame.height) if layout.is_lying else (layout.x, frame.width)
    if scale.is_named:
        return size / max(1, len(scale.names))
    places = sorted({frame.x(spot.x) for spot in spots})
    return min((after - before for before, after in itertools.pairwise(places)), default=3.0)


def _bar(canvas: Canvas, line: int, ends: tuple[float, float], fill: str, style: str, lying: bool) -> None:
    """One row or column of a bar. Where numbers grow it ends within a cell, else with a whole one."""
    length, first = (ends[1] - ends[0]) * (1 if lying else -1), round(ends[0])
    cells = [(cell, fill) for cell in range(int(length))]
    if length < 0:
        cells = [(-1 - cell, fill) for cell in range(round(-length))]
    elif int(length % 1 * 8) or length < 1:
        part = (_ACROSS if lying else _UP)[max(1, int(length % 1 * 8))]
        cells.append((int(length), part if fill == FILLS[0] else fill))
    for cell, character in cells:
        if lying:
            canvas.put(first + cell, line, character, style)
        else:
            canvas.put(line, first - cell, character, style)
