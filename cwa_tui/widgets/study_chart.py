"""The figure of a study's answer: points with their intervals, a marker for each series."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from cwa_tui.tables.columns import shorten
from cwa_tui.tables.study_answer import MOST_SERIES, Figure, Point
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.comparison_charts import MARKERS, STYLES, ComparisonChart

if TYPE_CHECKING:
    from cwa_tui.widgets.plot import Plot

_BESIDE = 0.08  # of each axis, around what is drawn
_TICKS = 5
_NAMES_CELLS = 56  # for all names below the axis


class StudyChart(ComparisonChart):
    """Draws the first few series of a figure, and says how many there are more."""

    def show_figure(self, figure: Figure | None, why: str) -> None:
        """`why` there is none."""
        if figure is None:
            self.show_chart(why, Text(""), words(why), None)
            return
        if self.shows(figure):
            return
        shown = dict(list(figure.series.items())[:MOST_SERIES])
        legend = Text()
        for place, name in enumerate(shown):
            legend.append(f"{MARKERS[place]} ", STYLES[place]).append_text(words(f"{name or figure.up}  "))
        said = f"across: {figure.across}{_scale(figure.log_x)} · up: {figure.up}{_scale(figure.log_y)} · │ 95 %"
        if len(figure.series) > len(shown):
            said += f" · {len(figure.series) - len(shown)} more series are in the table"
        if figure.left_out:
            said += f" · not finite, so not drawn: {figure.left_out}"
        self.show_chart(figure, legend, words(said.replace("_", " "), "dim"), lambda plot: _paint(plot, figure, shown))


def _scale(is_log: bool) -> str:
    return ", logarithmic" if is_log else ""


def _paint(plot: Plot, figure: Figure, shown: Mapping[str, tuple[Point, ...]]) -> None:
    from cwa_tui.widgets.plot import Named

    xs = [_at(point.x, figure.log_x) for points in shown.values() for point in points]
    ys = [
        _at(end, figure.log_y)
        for points in shown.values()
        for point in points
        for end in (point.y, point.low, point.high)
        if end is not None
    ]
    for place, points in enumerate(shown.values()):
        across = [_at(point.x, figure.log_x) for point in points]
        up = [_at(point.y, figure.log_y) for point in points]
        if len(points) > 1 and not figure.names:
            plot.line(across, up, STYLES[place])
        for x, point in zip(across, points, strict=True):
            if point.low is not None and point.high is not None:
                plot.bar_between(x, _at(point.low, figure.log_y), _at(point.high, figure.log_y), STYLES[place])
        plot.dots(across, up, MARKERS[place], STYLES[place])
    left, right = _around(min(xs), max(xs))
    low, high = _around(min(ys), max(ys))
    x_ticks = _x_ticks(figure, sorted(set(xs)))
    y_ticks = {low + (high - low) * step / (_TICKS - 1): "" for step in range(1, _TICKS - 1)}
    y_ticks = {tick: fmt.number(10**tick if figure.log_y else tick) for tick in y_ticks}
    plot.set_x_formatter(Named(x_ticks))
    plot.set_y_formatter(Named(y_ticks))
    plot.set_xticks(list(x_ticks))
    plot.set_yticks(list(y_ticks))
    plot.set_xlimits(left, right)
    plot.set_ylimits(low, high)


def _x_ticks(figure: Figure, xs: list[float]) -> dict[float, str]:
    """The values themselves, as many as have room; of places the names."""
    if figure.names:
        room = max(4, _NAMES_CELLS // len(xs))
        return {x: shorten(figure.names[x], room, "start") for x in xs}
    some = xs[:: -(-len(xs) // _TICKS)]
    return {x: _short(10**x if figure.log_x else x) for x in some}


def _short(value: float) -> str:
    """`70 M`, `1.4 B`, `512`."""
    return fmt.millions(value / 1e6) if value >= 1e6 else f"{value:.4g}"


def _at(value: float, is_log: bool) -> float:
    return math.log10(value) if is_log else value


def _around(low: float, high: float) -> tuple[float, float]:
    room = _BESIDE * ((high - low) or max(abs(high), 1.0))
    return low - room, high + room
