"""Which columns a table shows, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets.option_list import Option

from cwa_tui.tables.columns import Column
from cwa_tui.widgets.choices import Choices


class ColumnsScreen(ModalScreen[tuple[str, ...] | None]):
    """Returns the keys of the columns to show, () for those that fit, None for escape."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "show_or_hide", "show or hide"),
        Binding("J,shift+down", "shift(1)", "later"),
        Binding("K,shift+up", "shift(-1)", "earlier"),
        Binding("R", "dismiss(())", "as they fit"),
        Binding("enter", "take", "take", priority=True),
        Binding("escape", "dismiss(None)", "close"),
    ]

    def __init__(self, columns: Sequence[Column], shown: Sequence[str]) -> None:
        super().__init__()
        known = {column.key: column for column in columns}
        hidden = [key for key in known if key not in shown]
        self._order = [known[key] for key in (*shown, *hidden) if key in known]
        self._shown = set(shown)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog choose") as dialog:
            dialog.border_title = "columns"
            dialog.border_subtitle = "space shows or hides · J K move · enter takes · R as they fit"
            yield Choices(*self._options(), compact=True, markup=False)

    def _options(self) -> list[Option]:
        return [Option(f"[{'x' if c.key in self._shown else ' '}] {c.label}", id=c.key) for c in self._order]

    def _renew(self, highlighted: int) -> None:
        options = self.query_one(Choices)
        options.set_options(self._options())
        options.highlighted = highlighted

    def action_show_or_hide(self) -> None:
        place = self.query_one(Choices).highlighted
        if place is not None:
            self._shown ^= {self._order[place].key}
            self._renew(place)

    def action_shift(self, step: int) -> None:
        place = self.query_one(Choices).highlighted
        if place is not None and 0 <= place + step < len(self._order):
            column = self._order.pop(place)
            self._order.insert(place + step, column)
            self._renew(place + step)

    def action_take(self) -> None:
        keys = tuple(column.key for column in self._order if column.key in self._shown)
        self.dismiss(keys or None)
