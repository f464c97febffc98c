"""A figure in cells: its chart, what its markers stand for, and what is not drawn. Keys move and enlarge what is in sight."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll

from cwa_engine.figures.figure import Figure
from cwa_tui.charts.drawing import chart, legend, notes
from cwa_tui.charts.layout import Layout, Window, lay_out
from cwa_tui.charts.plot import wanted_height
from cwa_tui.charts.window import moved, zoomed
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

LEAST_HEIGHT = 8


class FigureChart(VerticalScroll, inherit_bindings=False, can_focus=True):
    """Draws any figure. One that needs more lines than there are is scrolled by the arrows; another fills what there is."""

    DEFAULT_CSS = """
    FigureChart { height: 1fr; min-height: 8; overflow-y: hidden; scrollbar-size-vertical: 1; }
    FigureChart.-scrolled { overflow-y: auto; scrollbar-gutter: stable; }
    FigureChart > QuietStatic { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus,equals_sign", "zoom(0.7)", "Zoom in", key_display="+", show=False),
        Binding("minus", "zoom(1.4286)", "Zoom out", show=False),
        Binding("left,h", "move(-1, 0)", "Left", show=False),
        Binding("right,l", "move(1, 0)", "Right", show=False),
        Binding("up,k", "move(0, 1)", "Up", show=False),
        Binding("down,j", "move(0, -1)", "Down", show=False),
        Binding("0", "whole", "Whole chart", show=False),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._shown: Figure | None = None
        self._laid: Layout | None = None
        self._window: Window | None = None  # None for all
        self._why = ""

    def compose(self) -> ComposeResult:
        yield QuietStatic(classes="cells")
        yield QuietStatic(classes="legend")
        yield QuietStatic(classes="note")

    def show_figure(self, figure: Figure | None, why: str = "") -> None:
        """Draw a figure, or say `why` there is none. What is in sight stays while the same figure is shown."""
        if figure is not None and figure == self._shown:
            return
        same = figure is not None and self._shown is not None and figure.name == self._shown.name
        self._shown, self._why = figure, why
        self._laid = lay_out(figure) if figure is not None else None
        self._window = self._window if same else None
        self._draw()

    @property
    def figure(self) -> Figure | None:
        """What is drawn."""
        return self._shown

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if not self.is_mounted or not self.content_size:
            return
        width, height = self.content_size
        cells, below, note = self.query(QuietStatic)
        if self._laid is None:
            cells.say(words(self._why))
            below.say(Text(""))
            note.say(Text(""))
            return
        width -= 1  # for a scroll bar
        said, missing = legend(self._laid, width), notes(self._laid)
        taken = sum(len(part.wrap(self.app.console, width)) for part in (said, missing) if part)
        tall = max(LEAST_HEIGHT, height - taken, wanted_height(self._laid))
        self.set_class(self._laid.is_map or tall + taken > height, "-scrolled")
        cells.say(chart(self._laid, width, tall, self._window))
        below.say(said)
        note.say(missing)
        below.display, note.display = bool(said), bool(missing)

    # keys

    def action_zoom(self, factor: float) -> None:
        if self._laid is not None and not self._laid.is_map:
            self._window = zoomed(self._window or self._laid.limits, factor)
            self._draw()

    def action_move(self, right: int, up: int) -> None:
        if self._laid is not None and not self.has_class("-scrolled"):
            self._window = moved(self._window or self._laid.limits, right, up)
            self._draw()
        else:
            self.scroll_relative(x=right, y=-up, animate=False)

    def action_whole(self) -> None:
        self._window = None
        self._draw()
