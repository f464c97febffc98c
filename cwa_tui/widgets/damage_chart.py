"""The damage chart: change of the loss against k, critical sets beside their controls, with intervals.

textual-plot brings numpy, which takes a tenth of a second to import: it is imported when the first chart is shown.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical

from cwa_tui.text.visible import words
from cwa_tui.widgets.damage_curve import CRITICAL, ChartPoint, DamageCurve, Series
from cwa_tui.widgets.pause import Pause
from cwa_tui.widgets.quiet_static import QuietStatic

if TYPE_CHECKING:
    from cwa_tui.widgets.plot import Plot

STYLES = ("bold", "cyan", "yellow", "magenta", "green", "blue", "red")  # of the series, in their order
PAUSE_S = 3.0  # between two drawings: each takes tens of milliseconds and 10 kB


class DamageChart(Vertical):
    """A legend with markers, the plot, and a sentence on what has no place in it. + and - zoom, arrows move, 0 resets."""

    DEFAULT_CSS = """
    DamageChart { height: 1fr; min-height: 8; }
    DamageChart > #chart-legend, DamageChart > #chart-note { height: auto; }
    DamageChart > #chart-nothing { height: 1fr; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._legend = QuietStatic(id="chart-legend")
        self._empty = QuietStatic(id="chart-nothing")
        self._note = QuietStatic(id="chart-note")
        self._plot: Plot | None = None
        self._curve = DamageCurve(())
        self._nothing, self._with_draws = "", True
        self._pause = Pause(self, PAUSE_S, self._draw)
        self._axes: tuple[object, ...] = ()  # what the axes were made for

    def compose(self) -> ComposeResult:
        yield self._legend
        yield self._empty
        yield self._note

    def show_curve(self, curve: DamageCurve, nothing: str, with_draws: bool = True) -> None:
        """Draw these series; `nothing` where there are none. What the user zoomed to stays until k or series change."""
        wanted = (curve, nothing, with_draws)
        if wanted != (self._curve, self._nothing, self._with_draws):
            self._curve, self._nothing, self._with_draws = wanted
            self._draw_soon()

    def on_mount(self) -> None:
        self._draw()

    def on_show(self) -> None:
        self._draw()

    def _draw_soon(self) -> None:
        """Draw a curve that grows, but not while it is hidden."""
        if self.is_mounted and self.size.area:
            self._pause.ask()

    def _draw(self) -> None:
        curve = self._curve
        self._empty.display = not curve.series
        self._empty.say(words(self._nothing))
        self._legend.say(_legend(curve, self._with_draws))
        self._note.say(words(curve.not_drawn, "bold"))
        if curve.series and self._plot is None:
            self._plot = self._first_plot()
        if self._plot:
            self._plot.display = bool(curve.series)
            if self._plot.is_mounted:
                self._fill(self._plot)

    def _first_plot(self) -> Plot:
        from cwa_tui.widgets.plot import Plot

        plot = Plot(id="plot-of-damage", ready=lambda: self._fill(plot))
        self.mount(plot, after=self._legend)
        return plot

    def _fill(self, plot: Plot) -> None:
        """Draw the series. Axes are set anew where k or series are others than before."""
        from cwa_tui.widgets.plot import KFrame

        curve = self._curve
        if not curve.series:
            return
        plot.clear()
        frame = KFrame.around(curve.ks, *curve.span)
        plot.zero_line(frame)
        shifts = frame.shifts(len(curve.series))
        if self._with_draws:  # first, so that they cover nothing
            for row, shift in zip(curve.series, shifts, strict=True):
                plot.dots([_x(p, shift) for p in row.draws], [p.delta for p in row.draws], "·", "dim")
        for row, shift, style in zip(curve.series, shifts, itertools.cycle(STYLES), strict=False):
            _draw_series(plot, row, shift, style, (curve.span[1] + frame.high) / 2)
        plot.set_k_axis(curve.ks)
        axes = (curve.ks, [row.name for row in curve.series])
        if axes != self._axes:
            self._axes = axes
            plot.set_xlimits(frame.left, frame.right)
            plot.set_ylimits(frame.low, frame.high)


def _draw_series(plot: Plot, row: Series, shift: float, style: str, top: float) -> None:
    xs, ys = [_x(point, shift) for point in row.points], [point.delta for point in row.points]
    if row.name == CRITICAL and len(xs) > 1:
        plot.line(xs, ys, style)
    for x, point in zip(xs, row.points, strict=True):
        if point.low is not None and point.high is not None:
            plot.bar_between(x, point.low, point.high, style)
    plot.dots(xs, ys, row.marker, style)
    plot.dots([math.log10(k) + shift for k in row.collapsed], [top] * len(row.collapsed), "^", f"bold {style}")


def _x(point: ChartPoint, shift: float) -> float:
    return math.log10(point.k) + shift


def _legend(curve: DamageCurve, with_draws: bool) -> Text:
    """`● critical  ○ random  · draws`: markers tell the series apart, colours only help."""
    said = Text(no_wrap=False)
    for place, row in enumerate(curve.series):
        name = row.name if row.name == CRITICAL else f"{row.name}, leading draw"
        said.append(f"{row.marker} ", STYLES[place % len(STYLES)]).append(f"{name}  ")
    if with_draws and any(row.draws for row in curve.series):
        said.append("· each draw  ", "dim")
    if curve.series:
        said.append("│ 95 %", "dim")
    return said
