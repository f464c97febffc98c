"""All models that are known here, filtered as one types: warm ones first, then those on disk, then the guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from cwa_tui.form.model_choice import KnownModels, ModelChoice, Room, matching
from cwa_tui.tables.columns import shorten
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import visible

_WIDTHS = {"weights": 7, "where": 7, "on disk": 8, "licence": 11, "memory": 9}  # cells of the columns beside the name
_RIGHT = ("weights", "on disk")
_WITHOUT_DISK = 80  # cells up to which there is no room for the size on disk, which the last lines say too


class PickModelScreen(ModalScreen[str | None]):
    """Returns the name of a model, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move('cursor_up')", show=False, priority=True),
        Binding("down", "move('cursor_down')", show=False, priority=True),
        Binding("pageup", "move('page_up')", show=False, priority=True),
        Binding("pagedown", "move('page_down')", show=False, priority=True),
        Binding("ctrl+home", "move('first')", show=False, priority=True),
        Binding("ctrl+end", "move('last')", show=False, priority=True),
        Binding("escape", "close", "close"),
    ]
    AUTO_FOCUS = "#model-filter"

    def __init__(self, models: KnownModels, room: Room, typed: str) -> None:
        super().__init__()
        self._models, self._room, self._typed = models, room, typed
        self._shown: list[ModelChoice] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="pick-model") as box:
            box.border_title = "models"
            box.border_subtitle = "type to filter · enter takes · esc closes"
            line = Input(
                self._typed, "type a part of a name, a licence, or: warm, on disk", id="model-filter", compact=True
            )
            line.cursor_blink = False
            yield line
            yield Static(id="model-head")
            models = OptionList(id="model-list", compact=True)
            models.can_focus = False  # the filter keeps the focus
            yield models
            yield Static(id="model-facts")

    def on_mount(self) -> None:
        self._filter()

    def on_resize(self) -> None:
        self._filter()

    @on(Input.Changed)
    def _filter(self) -> None:
        typed = self.query_one("#model-filter", Input).value.strip()
        self._shown = matching(self._models.choices, typed)
        if not self._shown:  # perhaps it is mistyped
            near = (self._models.find(name) for name in self._models.near(typed))
            self._shown = [choice for choice in near if choice]
        models = self.query_one(OptionList)
        models.clear_options()
        models.add_options([Option(self._row(choice)) for choice in self._shown])
        models.highlighted = 0 if self._shown else None
        self.query_one("#model-head", Static).update(self._line("name", {name: name for name in _WIDTHS}))
        if not self._shown:
            said = f"nothing here is called {visible(typed)}: enter takes it as a name of the Hub or a path"
            self.query_one("#model-facts", Static).update(Text(said))

    def _row(self, choice: ModelChoice) -> Text:
        cells = {
            "weights": fmt.millions(choice.parameters_m) if choice.parameters_m else "",
            "where": choice.place.value,
            "on disk": fmt.size(choice.disk_bytes) if choice.disk_bytes else "",
            "licence": f"{shorten(choice.licence, _WIDTHS['licence'] - 2, 'end')} *"
            if choice.gated
            else shorten(choice.licence, _WIDTHS["licence"], "end"),
            "memory": self._room.fits(choice),
        }
        return self._line(choice.name, cells)

    def _line(self, name: str, cells: Mapping[str, str]) -> Text:
        """One line of the list. Of a name that is too long its end is kept: it tells models of one family apart."""
        width = self.query_one(OptionList).size.width - 2
        shown = [column for column in _WIDTHS if column != "on disk" or width > _WITHOUT_DISK]
        room = max(16, width - sum(_WIDTHS[column] + 2 for column in shown))
        name = visible(name)
        name = name if len(name) <= room else f"…{name[1 - room :]}"
        others = [f"{cells[column] or '-':{'>' if column in _RIGHT else '<'}{_WIDTHS[column]}}" for column in shown]
        return Text("  ".join([f"{name:<{room}}", *others]), no_wrap=True, overflow="ellipsis")

    @on(OptionList.OptionHighlighted)
    def _describe(self, message: OptionList.OptionHighlighted) -> None:
        if message.option_index < len(self._shown):
            choice = self._shown[message.option_index]
            said = [
                visible(choice.facts),
                self._room.said(choice),
                "* needs a token of the Hub" if choice.gated else "",
            ]
            self.query_one("#model-facts", Static).update(Text("\n".join(part for part in said if part)))

    @on(OptionList.OptionSelected)
    def _clicked(self, message: OptionList.OptionSelected) -> None:
        self.dismiss(self._shown[message.option_index].name)

    @on(Input.Submitted)
    def _take(self) -> None:
        at = self.query_one(OptionList).highlighted
        typed = self.query_one("#model-filter", Input).value.strip()
        if at is not None and at < len(self._shown):
            self.dismiss(self._shown[at].name)
        else:
            self.dismiss(typed or None)

    def action_move(self, how: str) -> None:
        getattr(self.query_one(OptionList), f"action_{how}")()

    def action_close(self) -> None:
        self.dismiss(None)
