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
    from textual_plot.axis_formatter import NumericAxisFormatter

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
    plot.set_x_formatter(Named(x_ticks))
    plot.set_xticks(list(x_ticks))
    if figure.log_y:
        y_ticks = {math.log10(tick): fmt.number(tick) for tick in _round_figures(10**low, 10**high)}
        plot.set_y_formatter(Named(y_ticks))
        plot.set_yticks(list(y_ticks))
    else:
        plot.set_y_formatter(NumericAxisFormatter())
    plot.set_xlimits(left, right)
    plot.set_ylimits(low, high)


def _x_ticks(figure: Figure, xs: list[float]) -> dict[float, str]:
    """The values themselves, as many as have room; of places the names."""
    if figure.names:
        room = max(4, _NAMES_CELLS // len(xs))
        return {x: shorten(figure.names[x], room, "start") for x in xs}
    some = xs[:: -(-len(xs) // _TICKS)]
    return {x: _short(10**x if figure.log_x else x) for x in some}


def _round_figures(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two figures, or powers alone where these would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    return found if len(found) <= 2 * _TICKS else [10.0**power for power in powers if low <= 10.0**power <= high]


def _short(value: float) -> str:
    """`1.4 B`, `70 M`, `42 k`, `512`."""
    if value >= 1e6:
        return fmt.millions(value / 1e6)
    return f"{value / 1000:.0f} k" if value >= 10_000 else f"{value:.4g}"


def _at(value: float, is_log: bool) -> float:
    return math.log10(value) if is_log else value


def _around(low: float, high: float) -> tuple[float, float]:
    room = _BESIDE * ((high - low) or max(abs(high), 1.0))
    return low - room, high + room
