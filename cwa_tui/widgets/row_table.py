"""A table that its user sorts, filters, marks, copies and exports, by keys or the mouse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from cwa_tui.tables.columns import Column
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.prompt import FILTER, JUMP, Pressed, Prompt
from cwa_tui.tables.rows import TableLook
from cwa_tui.widgets.row_grid import RowGrid

MARK = "●"


class RowTable(RowGrid):
    """Marks stay with their rows; with `MARKS` at most so many rows can be marked."""

    BINDINGS: ClassVar[list[BindingType]] = [
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
    class About(Message):
        """Something that the user did with a table."""

        table: RowTable

        @property
        def control(self) -> RowTable:
            return self.table

    @dataclass
    class Opened(About):
        key: str

    @dataclass
    class Marked(About):
        keys: tuple[str, ...]

    @dataclass
    class TooManyMarks(About):
        most: int

    @dataclass
    class Arranged(About):
        """The user sorted or filtered."""

        sorting: Sorting | None
        text: str

    @dataclass
    class LookChanged(About):
        look: TableLook

    @dataclass
    class Copied(About):
        text: str

    @dataclass
    class ExportAsked(About):
        pass

    @dataclass
    class ColumnsAsked(About):
        pass

    def __init__(self, id: str, title: str = "") -> None:
        self.marks: tuple[str, ...] = ()
        self._prompt = Prompt()
        super().__init__(id, title)

    @property
    def is_prompting(self) -> bool:
        """Whether something is typed into the last line."""
        return self._prompt.is_open

    def is_marked(self, key: str) -> bool:
        return key in self.marks

    @property
    def has_foot(self) -> bool:
        """Whether the last line says how many rows there are, and what is typed."""
        return self._prompt.is_open or bool(self.filter_text or self.marks) or super().has_foot

    @property
    def foot(self) -> str:
        if self._prompt.is_open:
            return self._prompt.line
        parts = [super().foot]
        if self.filter_text:
            parts[0] += f" (of {self.source.total:,})"
            parts.append(f"/{self.filter_text}")
        if self.marks:
            parts.append(f"{len(self.marks)} marked")
        return " · ".join(parts)

    @property
    def why_nothing(self) -> str:
        return f"nothing matches /{self.filter_text} (escape clears it)" if self.filter_text else super().why_nothing

    def choose_columns(self, keys: tuple[str, ...]) -> None:
        """Show these columns, as the user asked; none stands for those that fit."""
        self.look = replace(self.look, columns=keys)
        self.columns.scroll_to_first()
        self.arrange_rows()
        self.post_message(self.LookChanged(self, self.look))

    def filter_by(self, text: str) -> None:
        """Show the rows that a text leaves, as if it had been typed."""
        if text != self.filter_text:
            self.filter_text = text
            self.arrange_rows()
            self.post_message(self.Arranged(self, self.look.sorting, text))

    def unmark(self) -> None:
        self.marks = ()
        self.redraw()
        self.post_message(self.Marked(self, ()))

    # what is done with rows

    def action_open(self) -> None:
        if (key := self.cursor_key) is not None:
            self.post_message(self.Opened(self, key))

    def action_sort(self) -> None:
        """Sort by the column under the cursor; again, the other way round; once more, as it came."""
        columns = self.shown_columns
        self.sort_by(self.columns.under_cursor or (columns[0].key if columns else ""))

    def sort_by(self, column: str) -> None:
        named = next((c for c in self.all_columns if c.key == column), None)
        if named is None:
            return
        self.columns.under_cursor = column
        now = self.look.sorting
        first = Sorting(column, descending=named.right)  # of numbers the largest come first
        if now is None or now.column != column:
            sorting: Sorting | None = first
        else:
            sorting = Sorting(column, not now.descending) if now == first else None
        self.look = replace(self.look, sorting=sorting)
        self.arrange_rows()
        self.go_to(0)
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
        self.resize_virtual()
        self.redraw()
        self.post_message(self.Marked(self, self.marks))

    def action_copy(self, cell: bool) -> None:
        if self.cursor >= len(self.source):
            return
        row = self.source.row(self.cursor).exact
        columns = [column.key for column in self.chosen_columns]
        if cell:
            column = self.columns.under_cursor
            text = str(row[column if column in row else columns[0]])
        else:
            text = "\t".join("" if row.get(key) is None else str(row[key]) for key in columns)
        self.post_message(self.Copied(self, text))

    def action_export(self) -> None:
        self.post_message(self.ExportAsked(self))

    def action_columns(self) -> None:
        self.post_message(self.ColumnsAsked(self))

    # what is typed into the last line

    def action_prompt(self, kind: str) -> None:
        self._prompt.open(kind, self.filter_text if kind == FILTER else "")
        self._typed()

    def check_consume_key(self, key: str, character: str | None) -> bool:
        return self._prompt.is_open and character is not None and character.isprintable()

    async def _on_key(self, event: events.Key) -> None:
        if not self._prompt.is_open and not (event.key == "escape" and (self.filter_text or self.marks)):
            return
        if self._prompt.is_open:
            pressed = self._prompt.press(event.key, event.character)
            if pressed is Pressed.NOTHING:
                return
            if pressed is not Pressed.TYPED:
                self._end_prompt(pressed)
            self._typed()
        elif self.filter_text:
            self.filter_by("")
        else:
            self.unmark()
        event.stop()
        event.prevent_default()

    def _on_paste(self, event: events.Paste) -> None:
        if self._prompt.is_open and event.text:
            self._prompt.paste(event.text)
            event.stop()
            self._typed()

    def _on_blur(self, event: events.Blur) -> None:
        super()._on_blur(event)
        if self._prompt.is_open and self.app.app_focus:  # what is typed stays where the whole terminal lost the focus
            self._prompt.close()
            self._typed()

    def _typed(self) -> None:
        """Show what is typed; a filter takes effect with each character."""
        if self._prompt.kind == FILTER:
            self.filter_by(self._prompt.text)
        self.resize_virtual()
        self.redraw()
        self.screen.refresh_bindings()  # keys that are letters mean themselves while something is typed

    def _end_prompt(self, pressed: Pressed) -> None:
        """Jump where that was asked for; a filter that is dropped leaves all rows."""
        kind, text = self._prompt.kind, self._prompt.text.strip()
        self._prompt.close()
        if kind == FILTER and pressed is Pressed.DROPPED:
            self.filter_by("")
        if kind == JUMP and pressed is Pressed.DONE and text:
            self.jump_to(text)

    def jump_to(self, text: str) -> None:
        """Go to the row of this key, else to that place, counted from 1."""
        place = self.source.place_of(text)
        if place is None and text.isdigit():
            place = int(text) - 1
        if place is not None:
            self.go_to(place)

    # the mouse

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            if column := self._column_at(offset.x):
                self.sort_by(column.key)
            return
        place = self.top + offset.y - 1
        if place >= len(self.source) or (self.has_foot and offset.y == self.scrollable_content_region.height - 1):
            return
        if column := self._column_at(offset.x):
            self.columns.under_cursor = column.key
        self.go_to(place)
        if event.chain == 2:
            self.action_open()

    def _column_at(self, x: int) -> Column | None:
        return self.columns.at(x - (2 if self.MARKS else 0), self.room)
