"""What the app does with a terminal, whatever it shows: colours, characters, copying, messages, the palette, jump labels."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.terminal_theme import TerminalTheme
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.filter import LineFilter, Monochrome, NoColor
from textual.notifications import SeverityLevel
from textual.screen import Screen

from cwa_tui.screens.jump import jump
from cwa_tui.screens.messages import Message, MessagesScreen
from cwa_tui.store.preferences import PreferenceFile
from cwa_tui.terminal.characters import InAscii, needs_ascii
from cwa_tui.terminal.clipboard import copy
from cwa_tui.terminal.commands import PALETTE
from cwa_tui.terminal.notices import desktop_notice
from cwa_tui.terminal.themes import THEMES, WithoutColour, terminal_theme, theme_for
from cwa_tui.text.visible import visible

MOST_MESSAGES = 100
TOLD_S = 5.0  # seconds that a message is shown


def end_with_terminal(descriptor: int) -> None:
    """Wait until the terminal is closed, and end as its signal would have it, which does not reach every process.

    Textual's loop would wait for ever for room to write to what nobody reads.
    """
    look = select.poll()
    look.register(descriptor, 0)
    look.poll()
    os.kill(os.getpid(), signal.SIGHUP)
    os._exit(128 + signal.SIGHUP)  # where the signal is ignored, as under nohup


class Visible(LineFilter):
    """Show control characters that a widget let through instead of sending them; the line keeps its width."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if all(control or text.isprintable() for text, _, control in segments):
            return segments
        shown = [Segment(visible(text), style, control) for text, style, control in segments]
        return Segment.adjust_line_length(shown, Segment.get_line_length(segments))


class TerminalApp(App[None]):
    """`ascii` draws in ASCII; None for what the terminal is said to need."""

    COMMANDS = App.COMMANDS | PALETTE
    # Messages stand in the line of the key hints, where nobody reads; a long one has the lines it takes, up to four.
    CSS = """
    ToastRack { margin-bottom: 0; align: left bottom; max-height: 4; overflow: hidden; }
    ToastHolder { align-horizontal: left; }
    Toast { width: 1fr; max-width: 100%; height: auto; max-height: 4; margin: 0; padding: 0 1; background: $panel; }
    Toast.-information, Toast.-warning, Toast.-error { border-left: none; }
    Toast.-warning { color: $text-warning; }
    Toast.-error { color: $text-error; }
    Toast:ansi { background: ansi_default; text-style: reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+o", "jump", "Jump to a part of the screen", show=False, priority=True)
    ]

    def __init__(self, preferences: PreferenceFile, ascii: bool | None = None) -> None:
        super().__init__()
        self.preferences = preferences
        self._filters_of_ours: list[LineFilter] = [Visible()]
        if self.no_color:
            self._filters_of_ours.append(WithoutColour())
        if needs_ascii(os.environ, sys.stderr.encoding or "") if ascii is None else ascii:
            self._filters_of_ours.append(InAscii())
        self._messages: deque[Message] = deque(maxlen=MOST_MESSAGES)
        self._theme_is_the_users = False
        for theme in THEMES:
            self.register_theme(theme)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """The filters of every line that a widget draws."""
        textual = (one for one in super().get_line_filters() if not isinstance(one, Monochrome | NoColor))
        return [*textual, *self._filters_of_ours]

    # colours

    def on_mount(self) -> None:
        known = list(self.available_themes)
        self.theme = theme_for(self.preferences.now.theme, known, self.no_color, self.console.color_system)
        self._theme_is_the_users = True
        if not self.is_headless:
            threading.Thread(target=end_with_terminal, args=[sys.stdin.fileno()], daemon=True).start()

    def watch_theme(self, name: str) -> None:
        """Remember the theme that the user has chosen; a terminal of few colours gets another without a word."""
        if self._theme_is_the_users:
            self.preferences.change(theme=name)

    @property
    def ansi_theme(self) -> TerminalTheme:
        """How colours with names look."""
        return terminal_theme(self.current_theme) or super().ansi_theme

    # messages

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = TOLD_S,
        markup: bool = True,
    ) -> None:
        """Show a message below what is read, the latest alone; earlier ones are in the palette."""
        self._messages.append(Message(time.time(), message, severity))
        super().notify(message, title=title, severity=severity, timeout=timeout, markup=markup)

    def on_notify(self) -> None:
        """A message takes the place of the one before."""
        self.clear_notifications()

    def tell_elsewhere(self, text: str) -> None:
        """Ring the bell and ask the terminal for a notice on the desktop, if the user wants that."""
        if self.preferences.now.bell:
            self.bell()
            if self._driver:
                self._driver.write(desktop_notice(text))

    # what the palette has beside keys, runs and themes

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        yield SystemCommand("Messages", "Show what was told before", self.action_messages)
        now, then = ("on", "off") if self.preferences.now.bell else ("off", "on")
        told = f"Ring and show a desktop notice when a run ends; it is {now}"
        yield SystemCommand(f"Bell {then}", told, self.action_switch_bell)

    def action_messages(self) -> None:
        self.push_screen(MessagesScreen(list(self._messages)))

    def action_switch_bell(self) -> None:
        """Switch bell and notice on or off; switched on, they are tried at once."""
        self.preferences.change(bell=not self.preferences.now.bell)
        self.notify(f"the bell is {'on' if self.preferences.now.bell else 'off'}", markup=False)
        self.tell_elsewhere("this is how the end of a run is told")

    def action_jump(self) -> None:
        jump(self.screen)

    # copying

    def copy_text(self, text: str) -> None:
        """Copy a text, and tell where it is."""

        async def copied() -> None:
            try:
                self.notify(f"copied to {await copy(text, self.copy_to_clipboard)}", markup=False)
            except OSError as error:
                self.notify(f"copied to the clipboard alone: {error}", severity="warning", markup=False)

        self.run_worker(copied(), group="copy")
