"""Which column of a table holds the texts, and which of its cells are texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.errors import DataError, did_you_mean

USUAL_COLUMNS = ("text", "content", "sentence", "document", "article", "code", "story")


@dataclass
class Tally:
    """Counts of the rows that were read, and of those without a text."""

    rows: int = 0
    empty: int = 0


def usual_column(columns: Collection[str]) -> str | None:
    """The column with a usual name for texts, the first of USUAL_COLUMNS that there is, in any case; None if there is none."""
    by_lower = {column.lower(): column for column in columns} | {column: column for column in columns}
    return next((by_lower[usual] for usual in USUAL_COLUMNS if usual in by_lower), None)


def choose_column(
    name: str,
    columns: Sequence[str],
    textual: Collection[str],
    asked: str | None,
    say: Callable[[str], None],
    accept_only_column: bool = True,
) -> str:
    """The column of texts: `asked` if given, else one with a usual name, else the only column of strings.

    `textual` are the columns of strings. `say` gets a note if the choice was not obvious. Raises DataError, which lists
    the columns.
    """
    there = ", ".join(_short(column) for column in columns) or "none"
    if asked is not None and asked not in columns:
        raise DataError(
            f"{name} has no column '{asked}', but: {there}", hint=did_you_mean(asked, columns) or "name one of these"
        )
    if asked is not None and asked not in textual:
        raise DataError(f"column '{asked}' of {name} holds no texts", hint=f"those do: {', '.join(textual) or 'none'}")
    chosen = asked or usual_column(textual)
    if chosen is None and accept_only_column and len(textual) == 1:
        (chosen,) = textual
    if chosen is None and not textual:
        hint = "convert a column of lists, objects or bytes to strings first"
        raise DataError(f"{name} has no column of strings, but: {there}", hint=hint)
    if chosen is None:
        usual = ", ".join(USUAL_COLUMNS[:3])
        raise DataError(
            f"{name} has no column with a usual name for texts, but: {there}",
            hint=f"name it with --text-column; usual names are {usual}",
        )
    if columns.count(chosen) > 1:
        raise DataError(
            f"{name} has the column '{chosen}' {columns.count(chosen)} times", hint="give each column a name of its own"
        )
    if chosen not in (asked, "text"):
        say(f"the texts of {name} are read from '{chosen}'")
    return chosen


def cell_texts(name: str, cells: Iterable[tuple[str, object]], tally: Tally) -> Iterator[str]:
    """The cells that hold text. Empty cells are counted in `tally`.

    `cells` are (place for messages, such as "'text' in line 3", value). Raises DataError for a cell of another type.
    """
    for where, cell in cells:
        tally.rows += 1
        if not isinstance(cell, str):
            if cell is None or (isinstance(cell, float) and math.isnan(cell)):  # a missing value in a table
                tally.empty += 1
                continue
            hint = "choose another column with --text-column, or convert lists and objects to strings first"
            raise DataError(f"{where} of {name} holds {_kind(cell)}, not a text", hint=hint)
        if not cell.strip():
            tally.empty += 1
            continue
        try:
            cell.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where} of {name} is not valid Unicode: {error.reason}", hint="correct it") from error
        yield cell


def _kind(cell: object) -> str:
    match cell:
        case bool():
            return f"{cell}".lower()
        case int() | float():
            return f"the number {_short(str(cell))}"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    return f"a value of type {type(cell).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
