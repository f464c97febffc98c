"""textual-plot as this program uses it: keys of our own, a logarithmic axis of k, and losses also as ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.reactive import reactive
from textual_plot import HiResMode, PlotWidget
from textual_plot.axis_formatter import AxisFormatter, NumericAxisFormatter

APART = 0.02  # of the width, between the series of one k


class Plot(PlotWidget, inherit_bindings=False):
    """`ready` is called when it can be drawn on, and when its size has changed."""

    DEFAULT_CSS = """
    Plot { height: 1fr; min-height: 6; }
    Plot > .plot--axis, Plot:focus > .plot--axis { color: $foreground-muted; }
    Plot:focus > .plot--axis { color: $accent; }
    Plot > .plot--tick, Plot > .plot--label { color: $foreground; text-style: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom_in", "Zoom in", key_display="+"),
        Binding("minus", "zoom_out", "Zoom out"),
        Binding("left,h", "pan_left", "Left", show=False),
        Binding("right,l", "pan_right", "Right", show=False),
        Binding("up,k", "pan_up", "Up", show=False),
        Binding("down,j", "pan_down", "Down", show=False),
        Binding("0", "reset_scales", "Whole chart"),
    ]

    margin_left = reactive(16)
    margin_top = reactive(0)
    margin_bottom = reactive(1)

    def __init__(self, id: str, ready: Callable[[], None]) -> None:
        super().__init__(id=id)
        self._ready = ready
        self._y_formatter = self._losses = LossAxis()

    def on_resize(self, event: Resize) -> None:
        self._losses.most = max(2, event.size.height // 3)  # two ticks in one line would stand for the same loss
        self._ready()  # the base class clears the plot when it is mounted, which is before

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> None:
        self.plot(xs, ys, line_style=style, hires_mode=HiResMode.BRAILLE)

    def dots(self, xs: Sequence[float], ys: Sequence[float], marker: str, style: str) -> None:
        self.scatter(xs, ys, marker=marker, marker_style=style)

    def bar_between(self, x: float, low: float, high: float, style: str) -> None:
        """An interval; one that is shorter than a cell is a single one."""
        self.errorbar([x], [(low + high) / 2], yerr=[(high - low) / 2], marker="│", marker_style=style)

    def zero_line(self, frame: KFrame) -> None:
        self.line([frame.left, frame.right], [0, 0], "dim")

    def set_k_axis(self, ks: Sequence[int]) -> None:
        """Ticks at these k, on an axis of their logarithms."""
        self.set_x_formatter(Named({math.log10(k): f"k {k:,}" for k in ks}))
        self.set_xticks([math.log10(k) for k in ks])


@dataclass(frozen=True, slots=True)
class KFrame:
    """The limits of a chart of changes of the loss over the logarithm of k, with room around what is drawn."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, ks: Sequence[int], low: float, high: float) -> KFrame:
        """`ks` from the smallest on, `low` and `high` the least and the largest change."""
        first, last = math.log10(ks[0]), math.log10(ks[-1])
        pad, room = 0.12 * max(1.0, last - first), 0.08 * ((high - low) or 1e-3)
        return cls(first - pad, last + pad, low - room, high + room)

    def shifts(self, count: int) -> list[float]:
        """How far each of so many series stands from its k, so that they lie beside each other."""
        step = APART * (self.right - self.left)
        return [step * (place - (count - 1) / 2) for place in range(count)]


class Named(AxisFormatter):
    """Ticks at given places, with given names."""

    def __init__(self, names: dict[float, str]) -> None:
        self._names = names

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        return [tick for tick in self._names if min_ <= tick <= max_]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [self._names[tick] for tick in ticks]


class LossAxis(NumericAxisFormatter):
    """Changes of the loss in nats, and the ratio of perplexities that each stands for: `+2.0 x7.39`."""

    most = 5  # ticks, about

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, so few that each has a line of its own."""
        least = (max_ - min_) / min(max_ticks, self.most)
        power = 10.0 ** math.floor(math.log10(least))
        step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least)
        return [step * number for number in range(math.ceil(min_ / step), math.floor(max_ / step) + 1)]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        return [f"{round(float(tick), 12) + 0.0:+.3g} {ratio_of(tick)}" for tick in ticks]


def ratio_of(delta: float) -> str:
    """`x7.39`: how many times the perplexity is the baseline's, by a change of the loss in nats."""
    if delta > 700:
        return "x>1e304"
    ratio = math.exp(delta)
    return (
        f"x{ratio:.2g}"
        if ratio >= 1000 or ratio < 0.01
        else f"x{ratio:.4g}"
        if abs(ratio - 1) < 0.1
        else f"x{ratio:.3g}"
    )
