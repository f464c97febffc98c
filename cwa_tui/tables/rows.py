"""Rows that a table shows: as read on screen, and the values behind them. No Textual in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from cwa_tui.tables.columns import Column
from cwa_tui.tables.filters import Sorting, arranged


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: cells by column key, each maybe with a rich style of its own.

    `values` are what the cells say, exactly: by them rows are sorted, filtered and exported. A cell without one counts as
    its text.
    """

    key: str
    cells: Mapping[str, str]
    style: str = ""
    styles: Mapping[str, str] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    def cell_style(self, column: str) -> str:
        return (self.styles or {}).get(column, self.style)

    @property
    def exact(self) -> Mapping[str, Any]:
        """The value of every column."""
        return {**self.cells, **self.values}


@dataclass(frozen=True)
class ViewTable:
    """A table with its title. Cells are read, values are exact."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


class RowSource(Protocol):
    """What a table shows. Rows are asked for by their place, those on screen alone."""

    @property
    def columns(self) -> Sequence[Column]:
        """All columns there are."""

    @property
    def total(self) -> int:
        """How many rows there are before anything is filtered."""

    def __len__(self) -> int: ...

    def row(self, place: int) -> TableRow: ...

    def place_of(self, key: str) -> int | None:
        """Where a row is; None if it is not shown."""

    def arranged(self, sorting: Sorting | None, text: str) -> RowSource:
        """The same rows sorted and filtered. A source that is arranged elsewhere gives itself."""


@dataclass(frozen=True, slots=True)
class TableLook:
    """What a user chose of a table: which columns, in which order, sorted by which. Kept between starts."""

    columns: tuple[str, ...] = ()  # keys of those shown; empty for those that fit
    sorting: Sorting | None = None


@dataclass(frozen=True)
class Rows:
    """Some rows in memory, arranged here."""

    columns: Sequence[Column]
    rows: Sequence[TableRow]
    order: Sequence[int] | None = None  # places in `rows`; None for all as they come

    @property
    def total(self) -> int:
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows) if self.order is None else len(self.order)

    def row(self, place: int) -> TableRow:
        return self.rows[place if self.order is None else self.order[place]]

    def place_of(self, key: str) -> int | None:
        return self._places.get(key)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self.row(place).key: place for place in range(len(self))}

    def arranged(self, sorting: Sorting | None, text: str) -> Rows:
        if sorting is None and not text.strip():
            return Rows(self.columns, self.rows)
        names = [column.key for column in self.columns]
        return Rows(self.columns, self.rows, arranged([row.exact for row in self.rows], names, sorting, text))
