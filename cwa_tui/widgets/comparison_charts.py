"""Charts of several runs: ranks against ranks, and damage curves over each other. Markers tell the runs apart.

textual-plot brings numpy, which takes a tenth of a second to import: it is imported when the first chart is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical

from cwa_engine.records.compared import Comparison, RankPair
from cwa_engine.records.curves import MEDIAN, DamageLevel
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

if TYPE_CHECKING:
    from cwa_tui.widgets.plot import Plot

MARKERS = ("●", "■", "▲", "◆")  # of critical sets, run by run
HOLLOW = ("○", "□", "△", "◇")  # of their controls
STYLES = ("cyan", "yellow", "magenta", "green")
MOST_DRAWN = 2000  # weights; each takes time to draw, and a terminal has few more cells
BESIDE = 0.12  # of the axis: where ranks stand that the other run does not have

Paint = Callable[["Plot"], None]


class ComparisonChart(Vertical):
    """A legend, the plot, and a line on what it does not show."""

    DEFAULT_CSS = """
    ComparisonChart { height: 1fr; min-height: 8; }
    ComparisonChart > .legend, ComparisonChart > .note { height: auto; max-height: 3; }
    ComparisonChart > .nothing { height: auto; }
    """

    def __init__(self, id: str, left: int) -> None:
        super().__init__(id=id)
        self._left = left  # cells for the labels of the vertical axis
        self._plot: Plot | None = None
        self._paint: Paint | None = None
        self._what: object = ()

    def compose(self) -> ComposeResult:
        yield QuietStatic(classes="legend")
        yield QuietStatic(classes="note")

    def show_chart(self, what: object, legend: Text, note: Text, paint: Paint | None) -> None:
        """Draw, where `what` is drawn is another thing than before; None draws nothing."""
        if self.shows(what):
            return
        self._what, self._paint = what, paint
        self.query_one(".legend", QuietStatic).say(legend)
        self.query_one(".note", QuietStatic).say(note)
        if self._plot is None and paint is not None:
            self._plot = self._first_plot()
        if self._plot is not None:
            self._plot.display = paint is not None
            if self._plot.is_mounted:
                self._fill()

    def shows(self, what: object) -> bool:
        """Whether this is what is on screen."""
        return what == self._what

    def _first_plot(self) -> Plot:
        from cwa_tui.widgets.plot import Plot

        plot = Plot(id=f"plot-of-{self.id}", ready=self._fill)
        plot.set_reactive(Plot.margin_left, self._left)
        self.mount(plot, after=".legend")
        return plot

    def _fill(self) -> None:
        if self._plot is not None and self._paint is not None:
            self._plot.clear()
            self._paint(self._plot)


class RankScatter(ComparisonChart):
    """The places of weights in the rankings of two runs, on logarithmic axes; equal places are on the dotted line."""

    def show_ranks(self, pairs: Sequence[RankPair], first: str, second: str, k: int, why: str) -> None:
        """`why` where ranks cannot be compared."""
        if why or not pairs:
            self.show_chart(why, Text(""), words(why or "there is nothing to compare"), None)
            return
        what = first, second, k, id(pairs)
        if self.shows(what):
            return
        both = [(pair.first, pair.second) for pair in pairs if pair.first and pair.second]
        only = (sum(pair.second is None for pair in pairs), sum(pair.first is None for pair in pairs))
        legend = Text.assemble(
            ("● ", STYLES[0]), f"in both: {len(both):,}  ", ("△ ", STYLES[2]), f"only {first}: {only[0]:,}  ",
            ("▷ ", STYLES[1]), f"only {second}: {only[1]:,}",
        )  # fmt: skip
        drawn = pairs[:: -(-len(pairs) // MOST_DRAWN)]
        said = f"across: place in {first} · up: place in {second} · top {k:,} · the line: equal places"
        if len(drawn) < len(pairs):
            said += f" · {len(drawn):,} of {len(pairs):,} weights are drawn, evenly chosen"
        self.show_chart(what, legend, Text(said, "dim"), lambda plot: _paint_ranks(plot, drawn))


def _paint_ranks(plot: Plot, pairs: Sequence[RankPair]) -> None:
    from cwa_tui.widgets.plot import Named

    last = max(place for pair in pairs for place in (pair.first, pair.second) if place)
    end = math.log10(max(last, 2))
    beside = end * (1 + BESIDE)
    both = [(pair.first, pair.second) for pair in pairs if pair.first and pair.second]
    ticks = {math.log10(place): f"{place:,}" for place in _round_places(last)}
    plot.line([0, end], [0, end], "dim")
    plot.dots([math.log10(p.first) for p in pairs if p.first and not p.second],
              [beside for p in pairs if p.first and not p.second], "△", STYLES[2])  # fmt: skip
    plot.dots([beside for p in pairs if p.second and not p.first],
              [math.log10(p.second) for p in pairs if p.second and not p.first], "▷", STYLES[1])  # fmt: skip
    plot.dots([math.log10(one) for one, _ in both], [math.log10(other) for _, other in both], "●", STYLES[0])
    plot.set_x_formatter(Named(ticks))
    plot.set_y_formatter(Named(ticks))
    plot.set_xticks(list(ticks))
    plot.set_yticks(list(ticks))
    plot.set_xlimits(-end * BESIDE / 2, end * (1 + 2 * BESIDE))
    plot.set_ylimits(-end * BESIDE / 2, end * (1 + 2 * BESIDE))


def _round_places(last: int) -> list[int]:
    """1, 10, 100 and so on, and the last place."""
    return sorted({10**power for power in range(len(str(last))) if 10**power <= last * 0.7 or power == 0} | {last})


class CurvesChart(ComparisonChart):
    """The change of the loss by k of each run's critical sets, and of the leading draw of each control."""

    def show_curves(self, found: Comparison, metric: str, perturbation: str, warning: str) -> None:
        """`warning` where the runs did not measure alike."""
        levels = [
            level
            for level in found.damage
            if (level.metric, level.perturbation) == (metric, perturbation) and level.figure != MEDIAN
        ]
        collapsed = [f"{found.label(level.run)} k {level.k}" for level in levels if level.collapsed]
        note = Text("\n").join(
            words(line, style)
            for line, style in (
                (warning, "bold"),
                ("not finite, so not drawn: " + ", ".join(collapsed) if collapsed else "", "bold"),
                ("nothing was damaged by both" if not levels else "", ""),
            )
            if line
        )
        legend = Text()
        for place, run in enumerate(found.runs):
            if any(level.run == run.run for level in levels):
                legend.append(f"{MARKERS[place]} ", STYLES[place]).append(f"{run.label}  ")
        if levels:
            legend.append("hollow: of each control the leading draw · │ 95 %", "dim")
        runs = [run.run for run in found.runs]
        drawn = [level for level in levels if level.log_ratio is not None]
        paint = (lambda plot: _paint_curves(plot, drawn, runs)) if drawn else None
        self.show_chart((tuple(levels), warning), legend, note, paint)


def _paint_curves(plot: Plot, levels: Sequence[DamageLevel], runs: Sequence[str]) -> None:
    from cwa_tui.widgets.plot import KFrame

    ks = sorted({level.k for level in levels})
    ends = [0.0, *(end for level in levels for end in (level.log_ratio, level.low, level.high) if end is not None)]
    frame = KFrame.around(ks, min(ends), max(ends))
    plot.zero_line(frame)
    for place, (run, shift) in enumerate(zip(runs, frame.shifts(len(runs)), strict=True)):
        mine = [level for level in levels if level.run == run]
        critical = sorted((level for level in mine if level.selection == "critical"), key=lambda level: level.k)
        controls = [level for level in mine if level.selection != "critical"]
        _draw(plot, controls, shift, HOLLOW[place], f"dim {STYLES[place]}", joined=False)
        _draw(plot, critical, shift, MARKERS[place], STYLES[place], joined=True)
    plot.set_k_axis(ks)
    plot.set_xlimits(frame.left, frame.right)
    plot.set_ylimits(frame.low, frame.high)


def _draw(plot: Plot, levels: Sequence[DamageLevel], shift: float, marker: str, style: str, joined: bool) -> None:
    xs = [math.log10(level.k) + shift for level in levels]
    ys = [level.log_ratio for level in levels if level.log_ratio is not None]
    if joined and len(xs) > 1:
        plot.line(xs, ys, style)
    for x, level in zip(xs, levels, strict=True):
        if joined and level.low is not None and level.high is not None:
            plot.bar_between(x, level.low, level.high, style)
    if xs:
        plot.dots(xs, ys, marker, style)
