"""What a table shows, as CSV, JSON or Markdown in a file of its own. No Textual in it.

text = export(("rank", "weight", "score"), [(1, "model.norm.weight[3]", 0.25)], "csv")
write_export(export_folder(), "topk-k7q2.csv", text)
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from cwa_engine.base.errors import InvalidInput, OutputError, did_you_mean
from cwa_engine.base.files import write_synced
from cwa_engine.base.places import state_folder
from cwa_engine.base.table import csv_text

Cell = str | int | float | bool | None
Format = Literal["csv", "json", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {"csv": ".csv", "json": ".json", "markdown": ".md"}

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_MARKUP = re.compile(r"([\\|`*~<&])")  # what Markdown does not take for itself, even inside a word
_UNSAFE = re.compile(r"[^\w.+=@-]+")


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


def export_folder() -> Path:
    """Where an export goes: the folder the program was started in, as a shell's `>` would have it.

    Where files cannot be written there, it is `exports` in the state folder, which is made.
    """
    here = Path.cwd()
    if os.access(here, os.W_OK | os.X_OK):
        return here
    folder = state_folder() / "exports"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def write_export(folder: Path, name: str, text: str | bytes) -> Path:
    """Write a new file and give its path: `topk.csv`, or `topk-2.csv` where that is taken. Nothing is overwritten.

    Characters that do not belong into a file's name become `_`. Raises OutputError where the folder cannot be written.
    """
    safe = Path(_UNSAFE.sub("_", name).lstrip(".") or "export")
    content = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    for number in itertools.count(1):
        path = folder / (safe.name if number == 1 else f"{safe.stem}-{number}{safe.suffix}")
        try:
            write_synced(path, content)
        except FileExistsError:
            continue
        except OSError as error:
            path.unlink(missing_ok=True)  # of a full disk: half a table is none
            raise _unwritable(path, error) from error
        return path
    raise AssertionError("unreachable")


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
    said = "" if cell is None else cell if isinstance(cell, str) else repr(cell)
    return _LINE_BREAK.sub("<br>", _MARKUP.sub(r"\\\1", said)).strip()


def _is_numeric(cells: Sequence[Cell]) -> bool:
    return any(cell is not None for cell in cells) and all(
        cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool)) for cell in cells
    )


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror}", hint="start cwtool in a folder that you may write, or make room"
    )
