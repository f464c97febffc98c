"""Which columns of a table are in sight, how wide they are, and which one is under the cursor. No Textual in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cwa_tui.tables.columns import PADDING, Column, columns_from, fit

WIDER = 8  # cells that a column grows or shrinks by


class ColumnView:
    """The columns of one table as its user looks at them. `chosen` are those to be shown, from left to right."""

    def __init__(self) -> None:
        self.chosen: Sequence[Column] = ()
        self.under_cursor = ""  # key of a column; empty until the user chooses one
        self._all_shown = False  # those that are left out for lack of room as well, by scrolling
        self._first = 0
        self._wider: dict[str, int] = {}  # cells that the user added
        self._room = 0
        self._fitted: list[Column] | None = None

    def choose(self, chosen: Sequence[Column], by_user: bool) -> None:
        """Show these columns; those that a user chose are shown though they may not fit."""
        if list(chosen) != list(self.chosen) or by_user != self._all_shown:
            self.chosen, self._all_shown, self._fitted = chosen, by_user, None

    def fitted(self, room: int) -> list[Column]:
        """The columns in sight, as wide as they are drawn in `room` cells. Every line asks for them, so they are kept."""
        if self._fitted is None or room != self._room:
            self._room, self._fitted = room, self._fit(room)
        return self._fitted

    def _fit(self, room: int) -> list[Column]:
        columns = [replace(c, width=max(2, c.width + self._wider.get(c.key, 0))) for c in self.chosen]
        if self._all_shown:
            columns = [replace(column, optional=0) for column in columns]
        columns = columns_from(columns, self._first, room)
        widths = fit(columns, room)
        return [replace(column, width=widths[column.key]) for column in columns if column.key in widths]

    def scroll_to_first(self) -> None:
        self._first, self._fitted = 0, None

    def step(self, step: int, room: int) -> None:
        """Put the cursor on the next column, and bring it into sight."""
        keys = [column.key for column in self.chosen]
        if not keys:
            return
        at = keys.index(self.under_cursor) + step if self.under_cursor in keys else 0 if step > 0 else len(keys) - 1
        place = max(0, min(at, len(keys) - 1))
        self.under_cursor = keys[place]
        self._first = min(self._first, place)
        self._fitted = None
        while self.under_cursor not in [column.key for column in self.fitted(room)] and self._first < place:
            self._first, self._fitted = self._first + 1, None

    def widen(self, step: int, room: int) -> None:
        """Make the column under the cursor, else the first that can grow, wider or narrower."""
        key = self.under_cursor or next((column.key for column in self.fitted(room) if column.most), "")
        if key:
            self._wider[key] = self._wider.get(key, 0) + step * WIDER
            self._fitted = None

    def at(self, x: int, room: int) -> Column | None:
        """The column at a cell, counted from where the first one begins."""
        right = 0
        for column in self.fitted(room):
            right += column.width + PADDING
            if x < right:
                return column
        return None
