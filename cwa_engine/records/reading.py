"""The files of a run read back, each compared with what the run wrote. torch-free.

Whatever is read here raises NotFound where it is not there or cannot be read, and Altered where it is not what the run wrote.
`fingerprint` is the run's, where it is known from elsewhere than its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from cwa_engine.base.errors import NotFound
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Row, Table
from cwa_engine.records.checksums import MANIFEST, read_checked
from cwa_engine.records.tables import topk_table
from cwa_engine.rows import TopWeight

SUMMARY_KEYS = ("run_id", "model", "texts", "baseline", "rankings", "damage")
MANIFEST_KEYS = ("run_id", "spec", "model", "data", "tables")


def read_summary(folder: Path, fingerprint: str | None = None) -> JsonMap:
    """The summary of a run folder."""
    return _read_map(folder, fingerprint, "summary.json", SUMMARY_KEYS)


def read_manifest(folder: Path, fingerprint: str | None = None) -> JsonMap:
    """The manifest of a run folder."""
    return _read_map(folder, fingerprint, MANIFEST, MANIFEST_KEYS)


def _read_map(folder: Path, fingerprint: str | None, name: str, needed: Iterable[str]) -> JsonMap:
    return parse_map(folder, name, _read(folder, fingerprint, name), needed)


def parse_map(folder: Path, name: str, content: str, needed: Iterable[str]) -> JsonMap:
    """The content of a JSON file of a run, which has these keys."""
    try:
        found = json.loads(content)
    except ValueError as error:
        raise unreadable(folder, name, str(error)) from error
    if not isinstance(found, dict) or (missing := [key for key in needed if key not in found]):
        raise unreadable(folder, name, f"it lacks {', '.join(missing)}" if isinstance(found, dict) else "it is no map")
    return found


def parse_rows(folder: Path, table: Table[Row], content: bytes, offset: int = 0, limit: int | None = None) -> list[Row]:
    """Rows of a table of a run, from row `offset` on. Columns that an earlier version did not have get their defaults."""
    return list(each_row(folder, table, content, offset, limit))


def each_row(
    folder: Path, table: Table[Row], content: bytes, offset: int = 0, limit: int | None = None
) -> Iterator[Row]:
    """The same one by one, for tables of millions of rows."""
    try:
        yield from table.each(content, offset, limit)
    except ValueError as error:
        raise unreadable(folder, table.name, str(error)) from error


def unreadable(folder: Path, name: str, why: str) -> NotFound:
    """The error for a file of a run that is not what it should be."""
    return NotFound(f"{folder / name} cannot be read: {why}", hint="run it again: `cwtool jobs retry`")


def read_topk(
    folder: Path, metric: str | None, offset: int, limit: int, fingerprint: str | None = None
) -> tuple[str, list[TopWeight]]:
    """(metric, rows `offset` to `offset + limit` of its ranking); without a metric, of the run's first one."""
    metrics = [ranking["metric"] for ranking in read_summary(folder, fingerprint)["rankings"]]
    chosen = metric or metrics[0]
    if chosen not in metrics:
        raise NotFound(f"run {folder.name} has no ranking by '{chosen}'", hint=f"it has: {', '.join(metrics)}")
    table = topk_table(chosen)
    return chosen, parse_rows(folder, table, read_checked(folder, table.name, fingerprint), offset, limit)


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
        raise unreadable(folder, name, str(error)) from error


def _no_file(folder: Path, name: str) -> NotFound:
    return NotFound(f"run {folder.name} has no {name}", hint="`cwtool results` lists finished runs")
