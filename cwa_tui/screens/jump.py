"""Jump labels: a letter on each thing that can have the focus; typing the letter goes there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Static

LETTERS = "asdfghjklqwertyuiopzxcvbnm1234567890"  # those under the fingers first


class JumpScreen(ModalScreen[Widget | None]):
    """Dismissed with the chosen widget, or None. Any key that is no label closes it."""

    DEFAULT_CSS = """
    JumpScreen { background: transparent; align: left top; }
    JumpScreen Static {
        position: absolute; width: auto; height: 1; padding: 0 1;
        background: $accent; color: auto; text-style: bold;
    }
    JumpScreen Static:ansi { background: ansi_default; color: ansi_default; text-style: bold reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "close the labels", show=False)]
    AUTO_FOCUS = ""

    def __init__(self, targets: Sequence[Widget]) -> None:
        super().__init__()
        self.targets = dict(zip(LETTERS, targets, strict=False))

    def compose(self) -> ComposeResult:
        for letter, target in self.targets.items():
            label = Static(letter, markup=False)
            label.styles.offset = (target.region.x, target.region.y)
            yield label

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss(self.targets.get(event.character or ""))


def jump_targets(screen: Screen[object]) -> list[Widget]:
    """What can have the focus and is seen, from the top left."""
    seen = [widget for widget in screen.focus_chain if widget.region.area and widget.region.overlaps(screen.region)]
    return sorted(seen, key=lambda widget: (widget.region.y, widget.region.x))


def jump(screen: Screen[object]) -> None:
    """Show the labels of a screen, and go where the user says."""
    screen.app.push_screen(JumpScreen(jump_targets(screen)), lambda target: target.focus() if target else None)
