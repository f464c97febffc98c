"""Tables: rows to CSV and back."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import operator
import typing
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Row = TypeVar("Row")

_SCORES = "scores"  # the field of a row that is spread over several columns
_SCORE = "score_"  # before a metric's name, in fidelity.csv


@dataclass(frozen=True)
class Table(Generic[Row]):
    """A CSV file with a line for each row and a column for each field of `row`, a frozen dataclass.

    Fields are texts, numbers, flags, or one of these or None. What is written reads back as the same rows, except for an
    empty text in a column that may be None, which reads back as None.

    `metrics` are for rows with a tuple `scores`: it has a column for each metric.

        Table("spikes.csv", Spike).from_bytes(content)
    """

    name: str  # of the file
    row: type[Row]
    metrics: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The heading of the file."""
        return (*self._readers(), *(_SCORE + metric for metric in self.metrics))

    def to_bytes(self, rows: Iterable[Row]) -> bytes:
        """The content of the file. The same rows give the same bytes."""
        if isinstance(rows, RowsAlike):
            return b"".join([csv_text([self.columns]).encode(), *map(self._block, rows.blocks)])
        return csv_text(itertools.chain([self.columns], self._cells(rows))).encode()

    def _cells(self, rows: Iterable[Row]) -> Iterable[Sequence[Any]]:
        fixed = list(self._readers())
        values: Callable[[Row], Sequence[Any]] = operator.attrgetter(*fixed)
        if len(fixed) == 1 or self.metrics:
            return ([*(getattr(row, name) for name in fixed), *getattr(row, _SCORES, ())] for row in rows)
        return map(values, rows)

    def _block(self, block: Alike[Row]) -> bytes:
        """The lines of rows that are alike: one line, as often as there are rows, filled in at once."""
        (cells,) = self._cells([block.form])
        plain = [
            cell.replace("%", "%%") if isinstance(cell, str) and name != block.field else cell
            for name, cell in zip(self.columns, cells, strict=True)
        ]
        lines = csv_text([plain]) * len(block.numbers)
        return (lines % tuple(block.numbers.ravel().tolist())).encode()

    def from_bytes(self, content: bytes, offset: int = 0, limit: int | None = None) -> list[Row]:
        """Rows from number `offset` on, at most `limit`. Columns that an earlier version did not have get their defaults.

        Raises ValueError, which names the line, for what is not such a file.
        """
        return list(self.each(content, offset, limit))

    def each(self, content: bytes, offset: int = 0, limit: int | None = None) -> Iterator[Row]:
        """The same one by one, for tables of millions of rows. Raises ValueError at the row where it is."""
        # Not StringIO, which takes four bytes for each character.
        reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline="\n"))
        try:
            yield from self._rows(reader, offset, None if limit is None else offset + limit)
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error

    def _rows(self, reader: csv.DictReader[str], offset: int, end: int | None) -> Iterator[Row]:
        there = [(name, read) for name, read in self._readers().items() if name in (reader.fieldnames or ())]
        score = _or_none(float)
        for line in itertools.islice(reader, offset, end):
            fields: dict[str, Any] = {name: read(line[name]) for name, read in there}
            if self.metrics:
                fields[_SCORES] = tuple(score(line[_SCORE + metric]) for metric in self.metrics)
            yield self.row(**fields)

    def _readers(self) -> Mapping[str, Callable[[str], Any]]:
        return _readers_of(typing.cast(Any, self.row))


@functools.cache
def _readers_of(row: type) -> Mapping[str, Callable[[str], Any]]:
    """How the text of each column is read, by field; a column that may be None is so where it is empty."""
    hints = typing.get_type_hints(row)
    return {field.name: _READERS[hints[field.name]] for field in dataclasses.fields(row) if field.name != _SCORES}


@dataclass(frozen=True)
class Alike(Generic[Row]):
    """Rows that differ in whole numbers within one of their texts: `form` has %d there, for each number of a row."""

    form: Row
    field: str  # the name of that text; of no other one a % means anything
    numbers: NDArray[np.integer[Any]]  # [rows, numbers]

    def row(self, place: int) -> Row:
        """The row at a place of the block."""
        text = getattr(self.form, self.field) % tuple(self.numbers[place].tolist())
        return dataclasses.replace(self.form, **{self.field: text})  # type: ignore[type-var]


class RowsAlike(Sequence[Row]):
    """Millions of rows as blocks of rows that are alike. A row is made when it is asked for."""

    def __init__(self, blocks: Iterable[Alike[Row]]) -> None:
        self.blocks = tuple(blocks)
        self._ends = list(itertools.accumulate(len(block.numbers) for block in self.blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Row]:
        return (block.row(place) for block in self.blocks for place in range(len(block.numbers)))

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        number = range(len(self))[place]  # raises IndexError beyond the ends
        block = bisect_right(self._ends, number)
        return self.blocks[block].row(number - self._ends[block])  # counted from the end of the block


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """CSV with a line feed behind each row; floats by repr, the shortest text that reads back as the same number."""
    lines = _Lines()
    csv.writer(lines).writerows(rows)  # with its own "\r\n", for it quotes what is part of its end of line
    return "".join([line[:-2] + "\n" for line in lines.written])


def scored_metrics(content: bytes) -> tuple[str, ...]:
    """The metrics that a fidelity.csv has scores by."""
    heading = next(csv.reader(io.StringIO(content.decode("utf-8"))), [])
    return tuple(column.removeprefix(_SCORE) for column in heading if column.startswith(_SCORE))


class _Lines:
    """The file of a csv writer, which writes a line at a time."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.write = self.written.append


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: read(text) if text else None


def _text(text: str) -> str:
    if text is None:  # csv has it for what a short line lacks
        raise ValueError("a column is missing")
    return text


def _flag(text: str) -> bool:
    return {"True": True, "False": False}[text]


_SIMPLE: dict[type, Callable[[str], Any]] = {str: _text, int: int, float: float, bool: _flag}
_READERS: dict[Any, Callable[[str], Any]] = {
    **_SIMPLE,
    **{kind | None: _or_none(read) for kind, read in _SIMPLE.items()},
}
