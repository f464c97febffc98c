"""A table of any length: it asks its source for the rows on screen and draws these alone.

A `DataTable` of 50,000 rows takes 6.6 s to fill and cannot be filtered; this one takes what its source takes to sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cwa_tui.tables.columns import PADDING, Column, columns_from, fit, shorten
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.rows import Rows, RowSource, TableLook, TableRow
from cwa_tui.text.visible import visible

MARK = "●"
WIDER = 8  # cells that a column grows or shrinks by
_PROMPTS = {"/": "filter: words, or column:word, column>number", ":": "jump to a rank, a row or a name"}


class RowTable(ScrollView, can_focus=True):
    """Shows a `RowSource`. One row and one column are under the cursor; marks stay with their rows.

    `COLUMNS` are those of an empty table. With `MARKS` rows can be marked, at most so many.
    """

    COLUMNS: ClassVar[Sequence[Column]] = ()
    MARKS: ClassVar[int] = 0
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "row-table--header",
        "row-table--cursor",
        "row-table--foot",
        "row-table--chosen",
    }
    DEFAULT_CSS = """
    RowTable { overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    RowTable > .row-table--header { color: $text-muted; }
    RowTable > .row-table--chosen { color: $foreground; text-style: bold underline; }
    RowTable > .row-table--foot { color: $text-muted; }
    RowTable > .row-table--cursor { text-style: none; }
    RowTable:focus > .row-table--cursor {
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
        Binding("enter", "open", "Open", show=False),
        Binding("s", "sort", "Sort", show=False),
        Binding("slash", "prompt('/')", "Filter", key_display="/"),
        Binding("colon", "prompt(':')", "Jump", key_display=":", show=False),
        Binding("space", "mark", "Mark", show=False),
        Binding("y", "copy(False)", "Copy row", show=False),
        Binding("Y", "copy(True)", "Copy cell", show=False),
        Binding("x", "export", "Export", show=False),
        Binding("C", "columns", "Columns", show=False),
    ]

    @dataclass
    class _About(Message):
        table: RowTable

        @property
        def control(self) -> RowTable:
            return self.table

    @dataclass
    class Highlighted(_About):
        """The cursor came to another row, by the user."""

        key: str

    @dataclass
    class Opened(_About):
        key: str

    @dataclass
    class Marked(_About):
        keys: tuple[str, ...]

    @dataclass
    class TooManyMarks(_About):
        most: int

    @dataclass
    class Arranged(_About):
        """The user sorted or filtered."""

        sorting: Sorting | None
        text: str

    @dataclass
    class LookChanged(_About):
        look: TableLook

    @dataclass
    class Copied(_About):
        text: str

    @dataclass
    class ExportAsked(_About):
        pass

    @dataclass
    class ColumnsAsked(_About):
        pass

    def __init__(self, id: str, title: str = "") -> None:
        super().__init__(id=id)
        self.border_title = title
        self.look = TableLook()
        self.filter_text = ""
        self.marks: tuple[str, ...] = ()
        self._given: RowSource = Rows(self.COLUMNS, ())
        self._source: RowSource = self._given
        self._nothing = ""
        self._cursor = 0
        self._cursor_key: str | None = None
        self._column = ""  # under the cursor
        self._first_column = 0
        self._wider: dict[str, int] = {}  # cells that the user added
        self._typing: str | None = None  # what is being typed, with its prompt
        self._drawn: dict[int, tuple[Any, ...]] = {}  # line -> what is on screen there
        self._fitted_about: tuple[Any, ...] = ()
        self._fitted_columns: list[Column] = []

    # what is shown

    def show(self, source: RowSource | Sequence[TableRow], nothing: str = "") -> None:
        """Show these rows; `nothing` where there are none. Rows are sorted and filtered as the user has it."""
        given = source if not isinstance(source, Sequence) else Rows(self.COLUMNS, source)
        if given == self._given and nothing == self._nothing and isinstance(given, Rows):
            return
        self._given, self._nothing = given, nothing
        self._arrange()

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
        return self._source.row(self._cursor).key if self._cursor < len(self._source) else None

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
        return max(3, len(self._source)) + 1 + (2 if self.styles.border_bottom[0] else 1) + bool(self.filter_text)

    def move_cursor_to(self, key: str) -> bool:
        """Put the cursor on a row without a message. False if there is no such row."""
        place = self._source.place_of(key)
        if place is not None:
            self._put_cursor(place)
        return place is not None

    def choose_look(self, look: TableLook) -> None:
        """Show these columns in this order."""
        self.look = look
        self._arrange()

    def choose_columns(self, keys: tuple[str, ...]) -> None:
        """Show these columns, as the user asked; none stands for those that fit."""
        self.look = replace(self.look, columns=keys)
        self._first_column = 0
        self._arrange()
        self.post_message(self.LookChanged(self, self.look))

    def filter_by(self, text: str) -> None:
        """Show the rows that a text leaves, as if it had been typed."""
        if text != self.filter_text:
            self.filter_text = text
            self._arrange()
            self.post_message(self.Arranged(self, self.look.sorting, text))

    def unmark(self) -> None:
        self.marks = ()
        self._redraw()
        self.post_message(self.Marked(self, ()))

    def _arrange(self) -> None:
        """Sort and filter what was given; the cursor stays on its row, or at the top if it never moved."""
        self._source = self._given.arranged(self.look.sorting, self.filter_text)
        place = self._source.place_of(self._cursor_key) if self._cursor_key is not None else None
        self._cursor = max(0, min(self._cursor if place is None else place, len(self._source) - 1))
        self._resize_virtual()
        self._redraw()

    def _resize_virtual(self) -> None:
        height = len(self._source) + 1 + self._has_foot
        if self.virtual_size.height != height:
            self.virtual_size = Size(self.size.width, height)

    @property
    def _has_foot(self) -> bool:
        """Whether the last line says how many rows there are, and what is typed."""
        return (
            self._typing is not None or bool(self.filter_text or self.marks) or len(self._source) > self._page_room + 1
        )

    @property
    def _page_room(self) -> int:
        """Rows that fit beside header and foot."""
        return max(1, self.scrollable_content_region.height - 2)

    @property
    def _top(self) -> int:
        return round(self.scroll_y)

    def on_resize(self) -> None:
        self._resize_virtual()
        self._drawn.clear()
        self._keep_in_sight()
        self.refresh()

    def _redraw(self) -> None:
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
            return "head", width, tuple(self._fitted()), self.look.sorting, self._column
        if self._has_foot and line == self.scrollable_content_region.height - 1:
            return "foot", width, self._foot()
        place = self._top + line - 1
        if place >= len(self._source):
            return "nothing", width, self._said_of_nothing(line)
        row = self._source.row(place)
        return (
            "row",
            width,
            row,
            row.key in self.marks,
            place == self._cursor,
            self.has_focus,
            self._column,
            tuple(self._fitted()),
        )

    def render_line(self, y: int) -> Strip:
        content = self._content(y)
        self._drawn[y] = content
        match content[0]:
            case "head":
                return self._head()
            case "foot":
                return self._line(self._foot(), self.get_component_rich_style("row-table--foot"))
            case "nothing":
                return self._line(content[2], self.rich_style)
        return self._row(content[2], marked=content[3], under_cursor=content[4])

    def _head(self) -> Strip:
        usual = self.get_component_rich_style("row-table--header")
        chosen = self.get_component_rich_style("row-table--chosen")
        sorting = self.look.sorting
        segments = [Segment(self._margin(False), usual)]
        for column in self._fitted():
            arrow = ("↓" if sorting.descending else "↑") if sorting and sorting.column == column.key else ""
            label = shorten(column.label, column.width - len(arrow), "end") + arrow
            segments += self._cell(label, column, chosen if column.key == self._column else usual)
        return self._strip(segments, usual)

    def _row(self, row: TableRow, marked: bool, under_cursor: bool) -> Strip:
        base = self.rich_style
        cursor = self.get_component_rich_style("row-table--cursor") if under_cursor else None
        segments = [Segment(self._margin(marked), cursor or base)]
        for column in self._fitted():
            style = base + Style.parse(row.cell_style(column.key))
            if cursor:
                style = style + cursor if not self.has_focus else cursor
                style += Style(underline=column.key == self._column and self.has_focus)
            text = shorten(visible(row.cells.get(column.key, "")), column.width, column.cut)
            segments += self._cell(text, column, style)
        return self._strip(segments, cursor or base)

    def _margin(self, marked: bool) -> str:
        return (f"{MARK} " if marked else "  ") if self.MARKS else ""

    def _cell(self, text: str, column: Column, style: Style) -> list[Segment]:
        padded = text.rjust(column.width) if column.right else text.ljust(column.width)
        return [Segment(f" {padded} ", style)]

    def _foot(self) -> str:
        if self._typing is not None:
            return f"{self._typing}▏  {_PROMPTS[self._typing[0]]}" if len(self._typing) == 1 else f"{self._typing}▏"
        count, total = len(self._source), self._source.total
        first, last = self._top + 1, min(self._top + self._page_room, count)
        parts = [f"{first:,}-{last:,} of {count:,}" if count else "none"]
        if self.filter_text:
            parts[0] += f" (of {total:,})"
            parts.append(f"/{self.filter_text}")
        if self.marks:
            parts.append(f"{len(self.marks)} marked")
        return " · ".join(parts)

    def _said_of_nothing(self, line: int) -> str:
        """What a line below the last row says: of a table without rows, why there are none."""
        if len(self._source):
            return ""
        text = f"nothing matches /{self.filter_text} (escape clears it)" if self.filter_text else self._nothing
        lines = wrap(text, max(10, self.scrollable_content_region.width - 2))
        return f" {lines[line - 1]}" if line - 1 < len(lines) else ""

    def _line(self, text: str, style: Style) -> Strip:
        return self._strip([Segment(visible(text), style)], style)

    def _strip(self, segments: list[Segment], style: Style) -> Strip:
        width = self.scrollable_content_region.width
        return Strip(segments).adjust_cell_length(width, style)

    def _fitted(self) -> list[Column]:
        """The columns on screen with their widths. Every line asks for them, so they are kept until something changes."""
        room = self.scrollable_content_region.width - (2 if self.MARKS else 0)
        about = (room, self._given.columns, self.look.columns, self._first_column, tuple(self._wider.items()))
        if about != self._fitted_about:
            self._fitted_about, self._fitted_columns = about, self._fit(room)
        return self._fitted_columns

    def _fit(self, room: int) -> list[Column]:
        columns = [replace(c, width=max(2, c.width + self._wider.get(c.key, 0))) for c in self.chosen_columns]
        if self.look.columns:
            columns = [replace(column, optional=0) for column in columns]
        columns = columns_from(columns, self._first_column, room)
        widths = fit(columns, room)
        return [replace(column, width=widths[column.key]) for column in columns if column.key in widths]

    # cursor

    def _put_cursor(self, place: int) -> None:
        self._cursor = max(0, min(place, len(self._source) - 1))
        self._cursor_key = self.cursor_key
        self._keep_in_sight()
        self._redraw()

    def _keep_in_sight(self) -> None:
        room = self.scrollable_content_region.height - 1 - self._has_foot
        if room < 1:
            return
        if self._cursor < self._top:
            self.scroll_to(y=self._cursor, animate=False)
        elif self._cursor >= self._top + room:
            self.scroll_to(y=self._cursor - room + 1, animate=False)

    def _go(self, place: int) -> None:
        """Move the cursor as the user asked."""
        before = self.cursor_key
        self._put_cursor(place)
        if (key := self.cursor_key) is not None and key != before:
            self.post_message(self.Highlighted(self, key))

    def action_move(self, rows: int) -> None:
        self._go(self._cursor + rows)

    def action_page(self, pages: int) -> None:
        self._go(self._cursor + pages * self._page_room)

    def action_end(self, last: bool) -> None:
        self._go(len(self._source) - 1 if last else 0)

    def action_column(self, step: int) -> None:
        """Choose the next column; columns that do not fit come into sight."""
        keys = [column.key for column in self.chosen_columns]
        if not keys:
            return
        place = keys.index(self._column) + step if self._column in keys else 0 if step > 0 else len(keys) - 1
        self._column = keys[max(0, min(place, len(keys) - 1))]
        self._bring_column_into_sight()
        self._redraw()

    def _bring_column_into_sight(self) -> None:
        place = [column.key for column in self.chosen_columns].index(self._column)
        if place <= self._first_column:
            self._first_column = 0 if place == 0 else min(self._first_column, place)
        while self._column not in [column.key for column in self._fitted()] and self._first_column < place:
            self._first_column += 1

    def action_widen(self, step: int) -> None:
        column = self._column or next((c.key for c in self._fitted() if c.most), "")
        if column:
            self._wider[column] = self._wider.get(column, 0) + step * WIDER
            self._redraw()

    # what is done with rows

    def action_open(self) -> None:
        if (key := self.cursor_key) is not None:
            self.post_message(self.Opened(self, key))

    def action_sort(self) -> None:
        """Sort by the column under the cursor; again, the other way round; once more, as it came."""
        columns = self._fitted()
        self.sort_by(self._column or (columns[0].key if columns else ""))

    def sort_by(self, column: str) -> None:
        named = next((c for c in self._given.columns if c.key == column), None)
        if named is None:
            return
        self._column = column
        now = self.look.sorting
        first = Sorting(column, descending=named.right)  # of numbers the largest come first
        if now is None or now.column != column:
            sorting: Sorting | None = first
        else:
            sorting = Sorting(column, not now.descending) if now == first else None
        self.look = replace(self.look, sorting=sorting)
        self._arrange()
        self._go(0)
        self.post_message(self.Arranged(self, sorting, self.filter_text))
        self.post_message(self.LookChanged(self, self.look))

    def action_mark(self) -> None:
        key = self.cursor_key
        if key is None or not self.MARKS:
            return
        if key in self.marks:
            self.marks = tuple(mark for mark in self.marks if mark != key)
        elif len(self.marks) < self.MARKS:
            self.marks += (key,)
        else:
            self.post_message(self.TooManyMarks(self, self.MARKS))
            return
        self._resize_virtual()
        self._redraw()
        self.post_message(self.Marked(self, self.marks))

    def action_copy(self, cell: bool) -> None:
        if self._cursor >= len(self._source):
            return
        row = self._source.row(self._cursor).exact
        columns = [column.key for column in self.chosen_columns]
        if cell:
            column = self._column if self._column in row else columns[0]
            text = str(row[column])
        else:
            text = "\t".join("" if row.get(key) is None else str(row[key]) for key in columns)
        self.post_message(self.Copied(self, text))

    def action_export(self) -> None:
        self.post_message(self.ExportAsked(self))

    def action_columns(self) -> None:
        self.post_message(self.ColumnsAsked(self))

    # what is typed into the last line

    def action_prompt(self, prompt: str) -> None:
        self._typing = prompt + (self.filter_text if prompt == "/" else "")
        self._typed()

    def check_consume_key(self, key: str, character: str | None) -> bool:
        return self._typing is not None and character is not None and character.isprintable()

    async def _on_key(self, event: events.Key) -> None:
        if self._typing is None:
            if event.key == "escape" and (self.filter_text or self.marks):
                event.stop()
                event.prevent_default()
                self.filter_by("") if self.filter_text else self.unmark()
            return
        typed = self._typing
        match event.key:
            case "enter":
                self._finish(typed)
            case "escape":
                self._typing = None
                if typed[0] == "/":
                    self.filter_by("")
            case "backspace" | "ctrl+h":
                self._typing = typed[:-1] if len(typed) > 1 else None
            case "ctrl+u":
                self._typing = typed[0]
            case _ if event.is_printable and event.character:
                self._typing = typed + event.character
            case _:
                return
        event.stop()
        event.prevent_default()
        self._typed()

    def _on_paste(self, event: events.Paste) -> None:
        if self._typing is not None and event.text:
            self._typing += event.text.splitlines()[0]
            event.stop()
            self._typed()

    def _on_blur(self, event: events.Blur) -> None:
        super()._on_blur(event)
        if self._typing is not None:
            self._typing = None
            self._typed()

    def _typed(self) -> None:
        """Show what is typed; a filter takes effect with each character."""
        if self._typing is not None and self._typing[0] == "/":
            self.filter_by(self._typing[1:])
        self._resize_virtual()
        self._redraw()
        self.screen.refresh_bindings()  # keys that are letters mean themselves while something is typed

    def _finish(self, typed: str) -> None:
        self._typing = None
        if typed[0] == ":" and typed[1:]:
            place = self._source.place_of(typed[1:].strip())
            if place is None and typed[1:].strip().isdigit():
                place = int(typed[1:]) - 1
            if place is not None:
                self._go(place)

    # the mouse

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            if column := self._column_at(offset.x):
                self.sort_by(column.key)
            return
        place = self._top + offset.y - 1
        if place >= len(self._source) or (self._has_foot and offset.y == self.scrollable_content_region.height - 1):
            return
        if column := self._column_at(offset.x):
            self._column = column.key
        self._go(place)
        if event.chain == 2:
            self.action_open()

    def _column_at(self, x: int) -> Column | None:
        left = 2 if self.MARKS else 0
        for column in self._fitted():
            left += column.width + PADDING
            if x < left:
                return column
        return None
