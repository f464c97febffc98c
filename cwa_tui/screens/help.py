"""Help, made from what is on the screen below: its keys, its columns, and the signs of states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from cwa_tui.tables.columns import Column
from cwa_tui.terminal.keys import CommandGroup, command_groups
from cwa_tui.text import format as fmt
from cwa_tui.text.glossary import STATES, meaning_of
from cwa_tui.widgets.paged_text import PagedText
from cwa_tui.widgets.row_table import RowTable

KEYS_WIDTH = 16


class HelpScreen(ModalScreen[None]):
    """Escape, q, enter and ? close it. It says what can be done on `screen` as it is now."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark", "dismiss", "close")]

    def __init__(self, screen: Screen[object]) -> None:
        super().__init__()
        self._keys = command_groups(screen)
        self._columns = {table_title(table): table.shown_columns for table in screen.query(RowTable) if table.display}

    def compose(self) -> ComposeResult:
        with PagedText(classes="dialog tall") as dialog:
            dialog.border_title = "help"
            dialog.border_subtitle = "escape closes"
            yield Static(Group(*help_lines(self._keys, self._columns)))


def table_title(table: RowTable) -> str:
    return str(table.border_title or table.id or "").partition(" · ")[0]


def help_lines(keys: Sequence[CommandGroup], columns: Mapping[str, Sequence[Column]]) -> Iterator[RenderableType]:
    """Titles and two columns of text below each."""
    for group in keys:
        yield from _section(group.title, [(" ".join(command.keys), command.says) for command in group.commands])
    for title, shown in columns.items():
        if known := [(column.label, said) for column in shown if (said := meaning_of(column.key))]:
            yield from _section(f"columns of {title}", known)
    yield from _section("states", [(fmt.signed(state), said) for state, said in STATES.items()])


def _section(title: str, lines: Sequence[tuple[str, str]]) -> Iterator[RenderableType]:
    yield Text(title, style="bold")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=KEYS_WIDTH)
    table.add_column()
    for left, right in lines:
        table.add_row(Text(f"  {left}"), Text(right))
    yield table
    yield Text()
