"""The files of a run read back, each compared with what the run wrote. torch-free.

Whatever is read here raises NotFound where it is not there or cannot be read, and Altered where it is not what the run wrote.
`fingerprint` is the run's, where it is known from elsewhere than its folder.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from cwa_engine.base.errors import NotFound
from cwa_engine.questions.fidelity import Prediction
from cwa_engine.records.checksums import MANIFEST, read_checked
from cwa_engine.rows import TopWeight

Row = TypeVar("Row")

SUMMARY_KEYS = ("run_id", "model", "texts", "baseline", "rankings", "damage")
MANIFEST_KEYS = ("run_id", "spec", "model", "data", "tables")
_SCORE = "score_"  # before a metric's name, in fidelity.csv


def read_summary(folder: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """The summary of a run folder."""
    return _read_map(folder, fingerprint, "summary.json", SUMMARY_KEYS)


def read_manifest(folder: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """The manifest of a run folder."""
    return _read_map(folder, fingerprint, MANIFEST, MANIFEST_KEYS)


def _read_map(folder: Path, fingerprint: str | None, name: str, needed: Iterable[str]) -> dict[str, Any]:
    return parse_map(folder, name, _read(folder, fingerprint, name), needed)


def parse_map(folder: Path, name: str, content: str, needed: Iterable[str]) -> dict[str, Any]:
    """The content of a JSON file of a run, which has these keys."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise _unreadable(folder, name, str(error)) from error
    if not isinstance(found, dict) or (missing := [key for key in needed if key not in found]):
        raise _unreadable(folder, name, f"it lacks {', '.join(missing)}" if isinstance(found, dict) else "it is no map")
    return found


def parse_rows(
    folder: Path, name: str, content: str, kind: type[Row], offset: int = 0, limit: int | None = None
) -> list[Row]:
    """Rows of a table of a run, from row `offset` on. Columns that an earlier version did not have get their defaults."""
    reader = csv.DictReader(io.StringIO(content))
    columns = _columns_of(kind)
    try:
        rows = itertools.islice(reader, offset, None if limit is None else offset + limit)
        return [kind(**{column: read(row[column]) for column, read in columns if column in row}) for row in rows]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise _unreadable(folder, name, f"line {reader.line_num}: {error}") from error


def parse_predictions(folder: Path, name: str, content: str) -> tuple[list[str], list[Prediction]]:
    """(metrics, rows) of fidelity.csv, which has a column for each metric's score."""
    reader = csv.DictReader(io.StringIO(content))
    metrics = [column.removeprefix(_SCORE) for column in reader.fieldnames or () if column.startswith(_SCORE)]
    columns = _columns_of(Prediction)
    try:
        rows = [
            Prediction(
                **{column: read(row[column]) for column, read in columns},
                scores=tuple(float(row[_SCORE + metric]) if row[_SCORE + metric] else None for metric in metrics),
            )
            for row in reader
        ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise _unreadable(folder, name, f"line {reader.line_num}: {error}") from error
    return metrics, rows


def _columns_of(kind: type) -> tuple[tuple[str, Callable[[str], Any]], ...]:
    """(column, how its text is read) of a table of these rows; a column that may be None is so where it is empty."""
    return tuple(
        (name, _READERS[str(hint)]) for name, hint in typing.get_type_hints(kind).items() if str(hint) in _READERS
    )


def _or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: read(text) if text else None


def _text(text: str) -> str:
    if text is None:  # csv has it for what a short line lacks
        raise ValueError("a column is missing")
    return text


def _flag(text: str) -> bool:
    return {"True": True, "False": False}[text]


_SIMPLE: dict[type, Callable[[str], Any]] = {str: _text, int: int, float: float, bool: _flag}
_READERS = {str(kind): read for kind, read in _SIMPLE.items()}
_READERS |= {str(kind | None): _or_none(read) for kind, read in _SIMPLE.items()}


def _unreadable(folder: Path, name: str, why: str) -> NotFound:
    return NotFound(f"{folder / name} cannot be read: {why}", hint="run it again: `cwtool jobs retry`")


def read_topk(
    folder: Path, metric: str | None, offset: int, limit: int, fingerprint: str | None = None
) -> tuple[str, list[TopWeight]]:
    """(metric, rows `offset` to `offset + limit` of its ranking); without a metric, of the run's first one."""
    metrics = [ranking["metric"] for ranking in read_summary(folder, fingerprint)["rankings"]]
    chosen = metric or metrics[0]
    if chosen not in metrics:
        raise NotFound(f"run {folder.name} has no ranking by '{chosen}'", hint=f"it has: {', '.join(metrics)}")
    name = f"topk_{chosen}.csv"
    content = _read(folder, fingerprint, name)
    return chosen, parse_rows(folder, name, content, TopWeight, offset, limit)


def read_piece(folder: Path, name: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file of a run folder from `offset` on, fewer at its end. Raises NotFound where there is none."""
    try:
        with (folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise _no_file(folder, name) from None


def _read(folder: Path, fingerprint: str | None, name: str) -> str:
    try:
        return read_checked(folder, name, fingerprint).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(folder, name, str(error)) from error


def _no_file(folder: Path, name: str) -> NotFound:
    return NotFound(f"run {folder.name} has no {name}", hint="`cwtool results` lists finished runs")
