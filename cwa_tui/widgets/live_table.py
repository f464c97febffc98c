"""A table that is updated several times a second: only cells that changed are drawn, the cursor stays on its row.

Adding rows is cheap and changing cells is cheap; removing rows or measuring widths lays everything out again. Hence
columns of fixed widths, stable row keys, and a rebuild only where rows have moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.text import Text
from textual.strip import Strip
from textual.widgets import DataTable

from cwa_tui.columns import Column, fit, shorten
from cwa_tui.visible import visible

MOST_ROWS = 500


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: cells by column key, each maybe with a rich style of its own."""

    key: str
    cells: Mapping[str, str]
    style: str = ""
    styles: Mapping[str, str] | None = None

    def cell_style(self, column: str) -> str:
        return (self.styles or {}).get(column, self.style)


class LiveTable(DataTable[Text]):
    """Show rows with `show`. `COLUMNS` says what there is; which of them fit depends on the width."""

    COLUMNS: Sequence[Column] = ()

    def __init__(self, id: str, title: str = "") -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=False)
        self.border_title = title
        self._columns_now: Sequence[Column] = self.COLUMNS
        self._widths_now: dict[str, int] = {}
        self._wanted: list[TableRow] = []
        self._shown: list[TableRow] = []
        self._nothing = ""

    def show(self, rows: Sequence[TableRow], nothing: str = "", columns: Sequence[Column] | None = None) -> None:
        """Make the table read `rows`; `nothing` is shown if there are none."""
        self._wanted = list(rows[:MOST_ROWS])
        self._columns_now = self.COLUMNS if columns is None else columns
        if nothing != self._nothing:
            self._nothing = nothing
            self.refresh()
        self._bring_up_to_date()

    def retitle(self, title: str) -> None:
        """Change the border's title if it differs, as setting it redraws the whole table."""
        if title != self.border_title:
            self.border_title = title

    @property
    def cursor_key(self) -> str | None:
        """Key of the row under the cursor."""
        return self._shown[self.cursor_row].key if 0 <= self.cursor_row < len(self._shown) else None

    def move_cursor_to(self, key: str) -> bool:
        """Put the cursor on a row without an event. False if there is no such row."""
        place = next((place for place, row in enumerate(self._shown) if row.key == key), None)
        if place is not None and place != self.cursor_row:
            with self.prevent(DataTable.RowHighlighted):
                self.move_cursor(row=place, animate=False)
        return place is not None

    def on_resize(self) -> None:
        self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        room = self.scrollable_content_region.width
        if not room:
            return  # not laid out yet, or hidden: a resize follows
        widths = fit(self._columns_now, room)
        if widths != self._widths_now:
            self._widths_now = widths
            self._rebuild(columns=True)
        elif [row.key for row in self._wanted[: len(self._shown)]] != [row.key for row in self._shown]:
            self._rebuild(columns=False)
        else:
            self._change_cells()
            self._append_rows()

    def _rebuild(self, columns: bool) -> None:
        key, top = self.cursor_key, self.scroll_y
        with self.prevent(DataTable.RowHighlighted):
            self.clear(columns=columns)
            if columns:
                for column in self._columns_shown():
                    label = Text(column.label, justify="right" if column.right else "left")
                    self.add_column(label, key=column.key, width=self._widths_now[column.key])
            self._shown = []
            self._append_rows()
        if key is not None:
            self.move_cursor_to(key)
        self.scroll_to(y=top, animate=False)

    def _append_rows(self) -> None:
        for row in self._wanted[len(self._shown) :]:
            with self.prevent(DataTable.RowHighlighted):
                self.add_row(*(self._cell(row, column) for column in self._columns_shown()), key=row.key)
            self._shown.append(row)

    def _change_cells(self) -> None:
        for place, (old, new) in enumerate(zip(self._shown, self._wanted, strict=False)):
            for column in self._columns_shown():
                name = column.key
                if (old.cells[name], old.cell_style(name)) != (new.cells[name], new.cell_style(name)):
                    self.update_cell(new.key, name, self._cell(new, column))
            self._shown[place] = new

    def _columns_shown(self) -> list[Column]:
        return [column for column in self._columns_now if column.key in self._widths_now]

    def _cell(self, row: TableRow, column: Column) -> Text:
        text = shorten(visible(row.cells[column.key]), self._widths_now[column.key], column.cut)
        return Text(text, row.cell_style(column.key), justify="right" if column.right else "left", no_wrap=True)

    def render_line(self, y: int) -> Strip:
        """A line of the table; of a table without rows, the text for that below its header."""
        line = y - self.header_height
        if self.row_count or line < 0 or not self._nothing:
            return super().render_line(y)
        width = self.size.width
        words = Text(self._nothing).wrap(self.app.console, max(1, width - 2))
        said = f" {words[line].plain}" if line < len(words) else ""
        return Strip([Segment(said, self.rich_style)]).extend_cell_length(width, self.rich_style)
