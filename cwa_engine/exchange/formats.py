"""Rows as CSV, JSON or Markdown, with every number exact. torch-free.

text = export(("rank", "weight", "score"), [(1, "model.norm.weight[3]", 0.25)], "csv")
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.table import csv_text

Cell = str | int | float | bool | None
Format = Literal["csv", "json", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: Mapping[str, str] = {"csv": ".csv", "json": ".json", "markdown": ".md"}

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
# What Markdown takes for itself inside a word, at the end of one, and between the parts of a link.
_MARKUP = re.compile(r"([\\|`*~<&]|(?<!\w)_|_(?!\w)|(?<=\])\()")


def export(columns: Sequence[str], rows: Iterable[Sequence[Cell]], form: str) -> str:
    """The rows in one of `FORMATS`, with every number exact: the shortest text that reads back as the same float.

    CSV has None as an empty cell, and JSON writes what is not finite as "Infinity", "-Infinity" or "NaN", in quotes. In
    Markdown a line break is `<br>`. Raises InvalidInput for another format, and for two columns of one name in JSON.

        export(("k", "ratio"), [(10, 1.25)], "json")  # [{"k": 10, "ratio": 1.25}]
    """
    given = [[_plain(cell) for cell in row] for row in rows]
    match checked_format(form):
        case "csv":
            return csv_text(itertools.chain([columns], given))
        case "json":
            return _json(columns, given)
        case "markdown":
            return _markdown(columns, given)


def checked_format(form: str) -> Format:
    """The format of this name. Raises InvalidInput."""
    for known in FORMATS:
        if form == known:
            return known
    raise InvalidInput(
        f"there is no format '{form}'", hint=did_you_mean(form, FORMATS) or f"there are: {', '.join(FORMATS)}"
    )


def _plain(cell: Cell) -> Cell:
    """The value as Python's own type: numpy's floats call themselves np.float64(...) in `repr`."""
    plain: Cell = getattr(cell, "item", lambda: cell)()
    return plain


def _json(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    if twice := next((name for name in columns if list(columns).count(name) > 1), None):
        raise InvalidInput(f"two columns are called '{twice}'", hint="JSON can hold one of them; take CSV")
    lines = [
        json.dumps(dict(zip(columns, map(_quoted_if_not_finite, row), strict=True)), allow_nan=False) for row in rows
    ]
    return "[" + ",".join(f"\n  {line}" for line in lines) + "\n]\n" if lines else "[]\n"


def _quoted_if_not_finite(cell: Cell) -> Cell:
    if isinstance(cell, float) and not math.isfinite(cell):
        return json.dumps(cell)  # the names that JavaScript and `float` know
    return cell


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table as GitHub has it; a column of numbers stands to the right."""
    right = [_is_numeric([row[place] for row in rows]) for place in range(len(columns))]
    lines = [
        [_markdown_cell(name) for name in columns],
        ["---:" if numeric else "---" for numeric in right],
        *([_markdown_cell(cell) for cell in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    return markdown_text("" if cell is None else cell if isinstance(cell, str) else repr(cell))


def markdown_text(said: str) -> str:
    """The text as Markdown shows it literally, also in a cell of a table: a line break is `<br>`."""
    return _LINE_BREAK.sub("<br>", _MARKUP.sub(r"\\\1", said)).strip()


def _is_numeric(cells: Sequence[Cell]) -> bool:
    return any(cell is not None for cell in cells) and all(
        cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool)) for cell in cells
    )
