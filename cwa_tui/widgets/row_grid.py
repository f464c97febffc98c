"""Rows and columns of any number, of which those in sight are asked for and drawn; a cursor goes over them.

A `DataTable` of 50,000 rows takes 6.6 s to fill and cannot be filtered; this one takes what its source takes to sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cwa_tui.tables.column_view import ColumnView
from cwa_tui.tables.columns import Column, shorten
from cwa_tui.tables.rows import Rows, RowSource, TableLook, TableRow
from cwa_tui.text.visible import visible

MARK = "●"


class RowGrid(ScrollView, can_focus=True):
    """Shows a `RowSource`. One row and one column are under the cursor. `COLUMNS` are those of an empty table.

    With `MARKS` there is room for a mark before each row.
    """

    COLUMNS: ClassVar[Sequence[Column]] = ()
    MARKS: ClassVar[int] = 0
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "row-grid--header",
        "row-grid--cursor",
        "row-grid--foot",
        "row-grid--chosen",
    }
    DEFAULT_CSS = """
    RowGrid { overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    RowGrid > .row-grid--header { color: $text-muted; }
    RowGrid > .row-grid--chosen { color: $foreground; text-style: bold underline; }
    RowGrid > .row-grid--foot { color: $text-muted; }
    RowGrid > .row-grid--cursor { text-style: none; }
    RowGrid:focus > .row-grid--cursor {
        background: $block-cursor-background; color: $block-cursor-foreground; text-style: $block-cursor-text-style;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("home,g", "end(False)", "First row", show=False),
        Binding("end,G,ctrl+end", "end(True)", "Last row", show=False),
        Binding("right,l", "column(1)", "Next column", show=False),
        Binding("left,h", "column(-1)", "Previous column", show=False),
        Binding("greater_than_sign", "widen(1)", "Wider column", show=False),
        Binding("less_than_sign", "widen(-1)", "Narrower column", show=False),
    ]

    @dataclass
    class Highlighted(Message):
        """The cursor came to another row, by the user."""

        table: RowGrid
        key: str

        @property
        def control(self) -> RowGrid:
            return self.table

    def __init__(self, id: str, title: str = "") -> None:
        super().__init__(id=id)
        self.border_title = title
        self.look = TableLook()
        self.filter_text = ""
        self._given: RowSource = Rows(self.COLUMNS, ())
        self._source: RowSource = self._given
        self._nothing = ""
        self.expected_rows = 0  # that are still to come, for which room is kept
        self.cursor = 0
        self._cursor_key: str | None = None
        self.columns = ColumnView()
        self._drawn: dict[int, tuple[Any, ...]] = {}  # line -> what is on screen there
        self.columns.choose(self.chosen_columns, by_user=False)

    # what is shown

    def show(self, source: RowSource | Sequence[TableRow], nothing: str = "") -> None:
        """Show these rows; `nothing` where there are none. Rows are sorted and filtered as the user has it."""
        given = source if not isinstance(source, Sequence) else Rows(self.COLUMNS, source)
        if given == self._given and nothing == self._nothing and isinstance(given, Rows):
            return
        self._given, self._nothing = given, nothing
        self.arrange_rows()

    def retitle(self, title: str) -> None:
        """Change the border's title if it differs."""
        if title != self.border_title:
            self.border_title = title

    @property
    def source(self) -> RowSource:
        """The rows as they are sorted and filtered."""
        return self._source

    @property
    def cursor_key(self) -> str | None:
        """Key of the row under the cursor."""
        return self._source.row(self.cursor).key if self.cursor < len(self._source) else None

    @property
    def all_columns(self) -> Sequence[Column]:
        """All that there are, as the source has them, also those that are hidden until they are chosen."""
        return self._given.columns

    @property
    def chosen_columns(self) -> list[Column]:
        """Those that the user chose, in that order, else all; they need not fit."""
        columns = list(self._given.columns)
        if not self.look.columns:
            return [column for column in columns if not column.hidden]
        by_key = {column.key: column for column in columns}
        return [by_key[key] for key in self.look.columns if key in by_key]

    @property
    def shown_columns(self) -> list[Column]:
        """The columns on screen, from left to right, as wide as they are drawn."""
        return self._fitted()

    @property
    def wanted_height(self) -> int:
        """Lines with which all rows are seen, border, header and last line included; at least three rows."""
        rows = max(3, len(self._source), self.expected_rows)
        return rows + 1 + (2 if self.styles.border_bottom[0] else 1) + bool(self.filter_text)

    def move_cursor_to(self, key: str) -> bool:
        """Put the cursor on a row without a message. False if there is no such row."""
        place = self._source.place_of(key)
        if place is not None:
            self._put_cursor(place)
        return place is not None

    def choose_look(self, look: TableLook) -> None:
        """Show these columns in this order."""
        self.look = look
        self.arrange_rows()

    def arrange_rows(self) -> None:
        """Sort and filter what was given; the cursor stays on its row, or at the top if it never moved."""
        self.columns.choose(self.chosen_columns, by_user=bool(self.look.columns))
        self._source = self._given.arranged(self.look.sorting, self.filter_text)
        place = self._source.place_of(self._cursor_key) if self._cursor_key is not None else None
        self.cursor = max(0, min(self.cursor if place is None else place, len(self._source) - 1))
        self.resize_virtual()
        self.redraw()

    def resize_virtual(self) -> None:
        """Say how many lines there are. While all are in sight a new number is no matter: it has the screen laid out anew."""
        height = len(self._source) + 1 + self.has_foot
        is_scrolled = max(height, self.virtual_size.height) > self.scrollable_content_region.height
        if self.virtual_size.height != height and is_scrolled:
            self.virtual_size = Size(self.size.width, height)

    @property
    def has_foot(self) -> bool:
        """Whether the last line says how many rows there are."""
        return len(self._source) > self.page_room + 1

    @property
    def page_room(self) -> int:
        """Rows that fit beside header and foot."""
        return max(1, self.scrollable_content_region.height - 2)

    @property
    def top(self) -> int:
        """Place of the first row in sight."""
        return round(self.scroll_y)

    def on_resize(self) -> None:
        self.resize_virtual()
        self._drawn.clear()
        self._keep_in_sight()
        self.refresh()

    def redraw(self) -> None:
        """Draw the lines whose content changed."""
        for line in range(self.scrollable_content_region.height):
            content = self._content(line)
            if self._drawn.get(line) != content:
                self.refresh(Region(0, line, self.size.width, 1))  # `refresh_lines` counts from the first row there is

    # lines

    def _content(self, line: int) -> tuple[Any, ...]:
        """What a line shows, to compare with what it showed."""
        width = self.scrollable_content_region.width
        if line == 0:
            return "head", width, tuple(self._fitted()), self.look.sorting, self.columns.under_cursor
        if self.has_foot and line == self.scrollable_content_region.height - 1:
            return "foot", width, self.foot
        place = self.top + line - 1
        if place >= len(self._source):
            return "nothing", width, self._said_of_nothing(line)
        row = self._source.row(place)
        look = self.has_focus, self.columns.under_cursor, tuple(self._fitted())
        return "row", width, row, self.is_marked(row.key), place == self.cursor, look

    def render_line(self, y: int) -> Strip:
        content = self._content(y)
        self._drawn[y] = content
        match content[0]:
            case "head":
                return self._head()
            case "foot":
                return self._line(self.foot, self.get_component_rich_style("row-grid--foot"))
            case "nothing":
                return self._line(content[2], self.rich_style)
        return self._row(content[2], marked=content[3], under_cursor=content[4])

    def _head(self) -> Strip:
        usual = self.get_component_rich_style("row-grid--header")
        chosen = self.get_component_rich_style("row-grid--chosen")
        sorting = self.look.sorting
        segments = [Segment(self._margin(False), usual)]
        for column in self._fitted():
            arrow = ("↓" if sorting.descending else "↑") if sorting and sorting.column == column.key else ""
            label = shorten(column.label, column.width - len(arrow), "end") + arrow
            segments += self._cell(label, column, chosen if column.key == self.columns.under_cursor else usual)
        return self._strip(segments, usual)

    def _row(self, row: TableRow, marked: bool, under_cursor: bool) -> Strip:
        base = self.rich_style
        cursor = self.get_component_rich_style("row-grid--cursor") if under_cursor else None
        segments = [Segment(self._margin(marked), cursor or base)]
        for column in self._fitted():
            style = base + Style.parse(row.cell_style(column.key))
            if cursor:
                style = style + cursor if not self.has_focus else cursor
                style += Style(underline=column.key == self.columns.under_cursor and self.has_focus)
            text = shorten(visible(row.cells.get(column.key, "")), column.width, column.cut)
            segments += self._cell(text, column, style)
        return self._strip(segments, cursor or base)

    def _margin(self, marked: bool) -> str:
        return (f"{MARK} " if marked else "  ") if self.MARKS else ""

    def _cell(self, text: str, column: Column, style: Style) -> list[Segment]:
        padded = text.rjust(column.width) if column.right else text.ljust(column.width)
        return [Segment(f" {padded} ", style)]

    @property
    def foot(self) -> str:
        """The last line."""
        count = len(self._source)
        first, last = self.top + 1, min(self.top + self.page_room, count)
        return f"{first:,}-{last:,} of {count:,}" if count else "none"

    def is_marked(self, key: str) -> bool:
        """Whether a row has a mark before it."""
        return False

    @property
    def why_nothing(self) -> str:
        """Why there are no rows."""
        return self._nothing

    def _said_of_nothing(self, line: int) -> str:
        """What a line below the last row says: of a table without rows, why there are none."""
        if len(self._source):
            return ""
        lines = wrap(self.why_nothing, max(10, self.scrollable_content_region.width - 2))
        return f" {lines[line - 1]}" if line - 1 < len(lines) else ""

    def _line(self, text: str, style: Style) -> Strip:
        return self._strip([Segment(visible(text), style)], style)

    def _strip(self, segments: list[Segment], style: Style) -> Strip:
        width = self.scrollable_content_region.width
        return Strip(segments).adjust_cell_length(width, style)

    def _fitted(self) -> list[Column]:
        """The columns in sight with their widths."""
        return self.columns.fitted(self.room)

    @property
    def room(self) -> int:
        """Cells for columns."""
        return self.scrollable_content_region.width - (2 if self.MARKS else 0)

    # cursor

    def _put_cursor(self, place: int) -> None:
        self.cursor = max(0, min(place, len(self._source) - 1))
        self._cursor_key = self.cursor_key
        self._keep_in_sight()
        self.redraw()

    def _keep_in_sight(self) -> None:
        room = self.scrollable_content_region.height - 1 - self.has_foot
        if room < 1:
            return
        if self.cursor < self.top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor >= self.top + room:
            self.scroll_to(y=self.cursor - room + 1, animate=False)

    def go_to(self, place: int) -> None:
        """Move the cursor as the user asked."""
        before = self.cursor_key
        self._put_cursor(place)
        if (key := self.cursor_key) is not None and key != before:
            self.post_message(self.Highlighted(self, key))

    def action_move(self, rows: int) -> None:
        self.go_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        self.go_to(self.cursor + pages * self.page_room)

    def action_end(self, last: bool) -> None:
        self.go_to(len(self._source) - 1 if last else 0)

    def action_column(self, step: int) -> None:
        """Choose the next column; columns that do not fit come into sight."""
        self.columns.step(step, self.room)
        self.redraw()

    def action_widen(self, step: int) -> None:
        self.columns.widen(step, self.room)
        self.redraw()
