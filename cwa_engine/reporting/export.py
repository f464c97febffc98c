"""The files of a run: written whole or not at all, read back by every client. torch-free.

summary.json · manifest.json · topk_<metric>.csv · perturbation.csv · log.txt
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import itertools
import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine import __version__
from cwa_engine.data.corpus import split
from cwa_engine.errors import NotFound, OutputError
from cwa_engine.result import DamagePoint, Ranking, RunResult, Separation, TopWeight, to_plain
from cwa_engine.spec import RunSpec

TOP_IN_SUMMARY = 10
_VERSIONED = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class ModelRecord:
    """Which weights were analysed."""

    name: str
    location: str
    kind: str
    revision: str | None
    files: dict[str, str]  # file name -> sha256
    dtype: str
    device: str
    device_name: str
    parameters: int


@dataclass(frozen=True)
class RunRecord:
    """A finished run with everything its files tell."""

    run_id: str
    spec: RunSpec
    command: str
    model: ModelRecord
    result: RunResult
    started: float  # seconds since the epoch
    log: Sequence[str]


def check_output(folder: Path) -> None:
    """Create an output folder and prove that it can be written. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".cwtool-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written: {error.strerror}", hint="give --output a folder you may write"
        ) from error


def write_run(folder: Path, record: RunRecord) -> None:
    """Write the run's folder under a temporary name, flush it to disk, then rename it: it is there whole or not at all."""
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    try:
        for name, content in run_files(record):
            _write_synced(scratch / name, content)
        scratch.rename(folder)
        _sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def copy_run(folder: Path, output: Path) -> None:
    """Copy a run's files into the user's output folder, each whole or not at all. Raises OutputError."""
    check_output(output)
    for path in sorted(folder.iterdir()):
        scratch = output / f".{path.name}.{uuid.uuid4().hex[:8]}"
        try:
            _write_synced(scratch, path.read_bytes())
            scratch.replace(output / path.name)
        except OSError as error:
            raise OutputError(
                f"{output / path.name} cannot be written: {error.strerror}",
                hint=f"all files of the run are in {folder}",
            ) from error
        finally:
            scratch.unlink(missing_ok=True)
    _sync_folder(output)


def run_files(record: RunRecord) -> Iterable[tuple[str, bytes]]:
    """(file name, content) of every file of a run; the summary last, so it can tell how long the others took."""
    began = time.perf_counter()
    for ranking in record.result.rankings:
        yield f"topk_{ranking.metric}.csv", topk_csv(ranking)
    if record.result.damage:
        yield "perturbation.csv", perturbation_csv(record.result.damage)
    yield "manifest.json", _json(manifest(record))
    yield "log.txt", "".join(f"{line}\n" for line in record.log).encode()
    timings = {**record.result.timings, "save": time.perf_counter() - began}
    yield "summary.json", _json(summary(record, timings))


def topk_csv(ranking: Ranking) -> bytes:
    return _csv([f.name for f in dataclasses.fields(TopWeight)], map(_cells, ranking.weights))


def perturbation_csv(points: Iterable[DamagePoint]) -> bytes:
    columns = [f.name for f in dataclasses.fields(DamagePoint) if f.name != "collapsed_at"]
    return _csv(columns, (_cells(point)[: len(columns)] for point in points))


def manifest(record: RunRecord) -> dict[str, Any]:
    """All that is needed to run this again and to know whether it was the same."""
    spec, texts = record.spec, record.result.texts
    scored, measured = split(range(1, texts.texts + 1))  # numbers of texts, the first is 1
    if texts.damage:
        measured = measured[: texts.damage]
    return {
        "run_id": record.run_id,
        "started": record.started,
        "command": record.command,
        "spec": spec.model_dump(mode="json"),
        "spec_sha256": spec.sha256(),
        "model": to_plain(record.model),
        "data": {"source": texts.source, "sha256": texts.sha256, "scored": scored, "measured": measured},
        "seeds": {"seed": spec.seed, "controls": [spec.seed + i for i in range(spec.control_seeds)]},
        "versions": {
            "cwtool": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _VERSIONED},
        },
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def summary(record: RunRecord, timings: dict[str, float]) -> dict[str, Any]:
    """What the run found, in one file."""
    result = record.result
    return {
        "run_id": record.run_id,
        "started": record.started,
        "model": to_plain(record.model),
        "texts": to_plain(result.texts),
        "baseline": to_plain(result.baseline),
        "baseline_drift": result.baseline_drift,
        "rankings": [
            {"metric": ranking.metric, "top": to_plain(ranking.weights[:TOP_IN_SUMMARY])} for ranking in result.rankings
        ],
        "damage": _damage_groups(result.damage, result.separations),
        "timings": timings,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _damage_groups(points: Sequence[DamagePoint], separations: Sequence[Separation]) -> list[dict[str, Any]]:
    """Per metric, k and perturbation: the critical set, then each control with the ratio it is beaten by."""

    def group(row: DamagePoint | Separation) -> tuple[str, int, str]:
        return row.metric, row.k, row.perturbation

    groups = []
    for key, members in itertools.groupby(points, key=group):
        critical = next(point for point in members if point.selection == "critical")
        controls = [to_plain(s) for s in separations if group(s) == key]
        groups.append(
            {
                "metric": key[0],
                "k": key[1],
                "perturbation": key[2],
                "critical": to_plain(critical),
                "controls": [
                    {k: v for k, v in c.items() if k not in ("metric", "k", "perturbation")} for c in controls
                ],
            }
        )
    return groups


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run folder. Raises NotFound where there is none."""
    return dict(json.loads(_read(folder, "summary.json")))


def read_topk(folder: Path, metric: str | None, offset: int, limit: int) -> tuple[str, list[TopWeight]]:
    """(metric, rows `offset` to `offset + limit` of its ranking); without a metric, of the run's first one."""
    metrics = [ranking["metric"] for ranking in read_summary(folder)["rankings"]]
    chosen = metric or metrics[0]
    if chosen not in metrics:
        raise NotFound(f"run {folder.name} has no ranking by '{chosen}'", hint=f"it has: {', '.join(metrics)}")
    reader = csv.DictReader(io.StringIO(_read(folder, f"topk_{chosen}.csv")))
    return chosen, [_top_weight(row) for row in itertools.islice(reader, offset, offset + limit)]


def _top_weight(row: dict[str, str]) -> TopWeight:
    return TopWeight(
        rank=int(row["rank"]),
        parameter=row["parameter"],
        flat_index=int(row["flat_index"]),
        out_feature=int(row["out_feature"]),
        in_feature=int(row["in_feature"]) if row["in_feature"] else None,
        value=float(row["value"]),
        score=float(row["score"]),
        layer=int(row["layer"]) if row["layer"] else None,
        component=row["component"],
    )


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(f"run {folder.name} has no {name}", hint="`cwtool results` lists finished runs") from None


def _cells(row: TopWeight | DamagePoint) -> list[object]:
    return [getattr(row, f.name) for f in dataclasses.fields(row)]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # floats by repr: the shortest text that reads back as the same number
    return text.getvalue().encode()


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
