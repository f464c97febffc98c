"""One of a few: a list, and the first letter of each as a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from cwa_tui.widgets.choices import Choices


class ChooseScreen(ModalScreen[str | None]):
    """Returns what was chosen, None for escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "close"),
    ]

    def __init__(self, title: str, names: Sequence[str]) -> None:
        super().__init__()
        self._title, self._names = title, names

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog choose") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "enter or first letter · escape closes"
            yield Choices(*(Option(name, id=name) for name in self._names), compact=True, markup=False)

    def on_key(self, event: Key) -> None:
        chosen = [name for name in self._names if name[0] == event.character]
        if len(chosen) == 1:
            event.stop()
            self.dismiss(chosen[0])

    @on(OptionList.OptionSelected)
    def _choose(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)
