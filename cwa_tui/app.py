"""The full-screen interface: `run()` is what `cwtool tui` calls."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.segment import Segment
from textual.app import App
from textual.color import Color
from textual.filter import LineFilter

from cwa_daemon.client import AsyncClient
from cwa_engine.base.errors import InvalidInput
from cwa_tui.screens.main import MainScreen
from cwa_tui.session import Connect, DaemonClient, Pace, Session
from cwa_tui.visible import visible

if TYPE_CHECKING:
    from cwa_daemon.client import Settings


class Visible(LineFilter):
    """Show control characters that a widget let through instead of sending them; the line keeps its width."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if all(control or text.isprintable() for text, _, control in segments):
            return segments
        shown = [Segment(visible(text), style, control) for text, style, control in segments]
        return Segment.adjust_line_length(shown, Segment.get_line_length(segments))


class CwtoolApp(App[None]):
    """`connect` gives a connected client; `clock` gives seconds since the epoch."""

    TITLE = "cwtool"
    CSS_PATH = "app.tcss"
    # wide: the job list has 76 cells in its 11 of 21 parts; Textual declares both as instance variables
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (152, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    def __init__(self, connect: Connect, clock: Callable[[], float] = time.time, pace: Pace | None = None) -> None:
        super().__init__()
        self._connect, self._clock, self._pace = connect, clock, pace or Pace()
        self._visible = Visible()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """The filters of every line that a widget draws."""
        return [*super().get_line_filters(), self._visible]

    def on_mount(self) -> None:
        self.push_screen(MainScreen(Session(self._connect, self._pace), self._clock))


def run(settings: Settings | None = None) -> None:
    """Show the interface until the user quits. Raises InvalidInput without a terminal.

    Textual reads keys from standard input and draws on standard error.
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):  # None if it is closed
        raise InvalidInput("the full-screen interface needs a terminal", hint="`cwtool jobs` and `cwtool ps` do not")
    app = CwtoolApp(connector(settings))
    if "SSH_CONNECTION" in os.environ and "TEXTUAL_ANIMATIONS" not in os.environ:
        app.animation_level = "none"  # every frame would be sent over the network
    app.run()


def connector(settings: Settings | None) -> Connect:
    """A function that connects. Its first call starts a daemon if none runs; later ones do not, as somebody stopped it."""
    connected = False

    async def connect() -> DaemonClient:
        nonlocal connected
        client = await AsyncClient.connect(settings, start=not connected)
        connected = True
        return client

    return connect
