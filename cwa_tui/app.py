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
from cwa_daemon.protocol import JobView
from cwa_engine.base.errors import InvalidInput
from cwa_tui.draft import Draft
from cwa_tui.preferences import PreferenceFile
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.help import HelpScreen
from cwa_tui.screens.home import HomeScreen
from cwa_tui.screens.new_run import NewRunScreen
from cwa_tui.screens.run import RunScreen
from cwa_tui.session import Connect, DaemonClient, Pace, Session
from cwa_tui.state import TuiStore
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
    # Textual declares both as instance variables
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    def __init__(
        self,
        connect: Connect,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
        preferences: PreferenceFile | None = None,
    ) -> None:
        super().__init__()
        self.preferences = preferences or PreferenceFile()
        self.session = Session(connect, pace or Pace(), TuiStore(clock))
        self._visible = Visible()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """The filters of every line that a widget draws."""
        return [*super().get_line_filters(), self._visible]

    def on_mount(self) -> None:
        self.push_screen(HomeScreen(self.session, self.preferences))
        self.run_worker(self.session.keep_up(self._explain), group="session")

    async def on_unmount(self) -> None:
        await self.session.close()

    def _explain(self, error: Exception) -> None:
        if isinstance(self.screen, StoreScreen):
            self.screen.explain(error)

    # what screens ask for, see `Navigation`

    def open_run(self, run_id: str) -> None:
        self.push_screen(RunScreen(self.session, self.preferences, run_id))

    def open_weight(self, run_id: str, metric: str, rank: int) -> None:
        raise NotImplementedError

    def open_comparison(self, run_ids: Sequence[str]) -> None:
        raise NotImplementedError

    def open_form(self, like: JobView | None) -> None:
        warm = [model.name for model in self.session.store.warm_models]
        draft = Draft(self.preferences.now.draft) if self.preferences.now.draft else Draft()
        form = NewRunScreen(self.session.submit, self._keep_draft, draft, warm)
        self.push_screen(form, lambda run_id: self.open_run(run_id) if run_id else None)

    def _keep_draft(self, draft: Draft) -> None:
        self.preferences.change(draft=dict(draft.values))

    def open_help(self) -> None:
        self.push_screen(HelpScreen())

    def copy_text(self, text: str) -> None:
        self.copy_to_clipboard(text)


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
    """A function that connects to the daemon in use."""

    async def connect(start: bool) -> DaemonClient:
        return await AsyncClient.connect(settings, start=start)

    return connect
