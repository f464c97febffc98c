"""Tables: rows to CSV and back."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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
        fixed = list(self._readers())

        def cells(row: Row) -> list[Any]:
            scores = getattr(row, _SCORES) if self.metrics else ()
            return [*(getattr(row, name) for name in fixed), *scores]

        return csv_text(itertools.chain([self.columns], map(cells, rows))).encode()

    def from_bytes(self, content: bytes, offset: int = 0, limit: int | None = None) -> list[Row]:
        """Rows from number `offset` on, at most `limit`. Columns that an earlier version did not have get their defaults.

        Raises ValueError, which names the line, for what is not such a file.
        """
        reader = csv.DictReader(io.StringIO(content.decode("utf-8")))
        try:
            return list(self._rows(reader, offset, None if limit is None else offset + limit))
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

    def _readers(self) -> dict[str, Callable[[str], Any]]:
        """How the text of each column is read, by field; a column that may be None is so where it is empty."""
        hints = typing.get_type_hints(self.row)
        names = [field.name for field in dataclasses.fields(self.row)]  # type: ignore[arg-type]
        return {name: _READERS[hints[name]] for name in names if name != _SCORES}


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """CSV with a line feed behind each row; floats by repr, the shortest text that reads back as the same number."""
    lines = _Lines()
    csv.writer(lines).writerows(rows)  # with its own "\r\n", for it quotes what is part of its end of line
    return "".join(lines.written)


def scored_metrics(content: bytes) -> tuple[str, ...]:
    """The metrics that a fidelity.csv has scores by."""
    heading = next(csv.reader(io.StringIO(content.decode("utf-8"))), [])
    return tuple(column.removeprefix(_SCORE) for column in heading if column.startswith(_SCORE))


class _Lines:
    """The file of a csv writer, whose lines end in a line feed alone."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line.removesuffix("\r\n") + "\n")


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
