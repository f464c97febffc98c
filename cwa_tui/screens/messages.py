"""What was told before, the latest last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from cwa_tui.text.visible import words
from cwa_tui.widgets.paged_text import PagedText

_STYLES = {"error": "red", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Message:
    """Something that was told: `time` in seconds since the epoch."""

    time: float
    text: str
    severity: str


class MessagesScreen(ModalScreen[None]):
    """Escape, q and enter close it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss", "close")]

    def __init__(self, messages: Sequence[Message]) -> None:
        super().__init__()
        self._messages = messages

    def compose(self) -> ComposeResult:
        with PagedText(classes="dialog tall") as dialog:
            dialog.border_title = "messages"
            dialog.border_subtitle = "escape closes"
            yield Static(self._lines() if self._messages else "nothing was told yet", markup=False)

    def _lines(self) -> Text:
        return Text("\n").join(_line(message) for message in self._messages)


def _line(message: Message) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(message.time))
    return Text.assemble(f"{clock}  ", words(message.text, _STYLES.get(message.severity, "")))
