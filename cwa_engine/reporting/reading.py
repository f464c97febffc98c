"""The files of a run read back, each compared with what the run wrote. torch-free.

Whatever is read here raises NotFound where it is not there or cannot be read, and Altered where it is not what the run wrote.
`fingerprint` is the run's, where it is known from elsewhere than its folder.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwa_engine.errors import NotFound
from cwa_engine.reporting.checksums import MANIFEST, read_checked
from cwa_engine.result import TopWeight


def read_summary(folder: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """The summary of a run folder."""
    return _read_map(
        folder, fingerprint, "summary.json", ("run_id", "model", "texts", "baseline", "rankings", "damage")
    )


def read_manifest(folder: Path, fingerprint: str | None = None) -> dict[str, Any]:
    """The manifest of a run folder."""
    return _read_map(folder, fingerprint, MANIFEST, ("run_id", "spec", "model", "data", "tables"))


def _read_map(folder: Path, fingerprint: str | None, name: str, needed: Iterable[str]) -> dict[str, Any]:
    try:
        found = json.loads(_read(folder, fingerprint, name))
    except ValueError as error:
        raise _unreadable(folder, name, str(error)) from error
    if not isinstance(found, dict) or (missing := [key for key in needed if key not in found]):
        raise _unreadable(folder, name, f"it lacks {', '.join(missing)}" if isinstance(found, dict) else "it is no map")
    return found


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
    reader = csv.DictReader(io.StringIO(_read(folder, fingerprint, name)))
    try:
        return chosen, [_top_weight(row) for row in itertools.islice(reader, offset, offset + limit)]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise _unreadable(folder, name, f"line {reader.line_num}: {error}") from error


def read_piece(folder: Path, name: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file of a run folder from `offset` on, fewer at its end. Raises NotFound where there is none."""
    try:
        with (folder / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise _no_file(folder, name) from None


def _top_weight(row: dict[str, str]) -> TopWeight:
    def whole(name: str) -> int | None:
        return int(row[name]) if row[name] else None

    return TopWeight(
        rank=int(row["rank"]),
        parameter=row["parameter"],
        flat_index=int(row["flat_index"]),
        out_feature=whole("out_feature"),
        in_feature=whole("in_feature"),
        value=float(row["value"]),
        score=float(row["score"]) if row["score"] else None,
        layer=whole("layer"),
        component=row["component"],
        expert=whole("expert"),
        target=row["target"],
        stable=row["stable"] == "True" if row["stable"] else None,
        fan_out=whole("fan_out") if "fan_out" in row else None,  # runs of before have none
        standard_error=float(row["standard_error"]) if row.get("standard_error") else None,  # older runs have none
    )


def _read(folder: Path, fingerprint: str | None, name: str) -> str:
    try:
        return read_checked(folder, name, fingerprint).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(folder, name, str(error)) from error


def _no_file(folder: Path, name: str) -> NotFound:
    return NotFound(f"run {folder.name} has no {name}", hint="`cwtool results` lists finished runs")
