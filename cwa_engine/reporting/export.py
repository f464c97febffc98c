"""The files of a run: written whole or not at all, read back by every client. torch-free.

summary.json · manifest.json · topk_<metric>.csv · perturbation.csv · evaluation.csv · controls.csv · log.txt, and where
asked for interactions.csv · stability.csv · fidelity.csv · ablation.csv · critical_set.csv · spikes.csv · spike_removal.csv
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine import __version__
from cwa_engine.data.corpus import split
from cwa_engine.errors import NotFound
from cwa_engine.files import is_abandoned, scratch_path, sync_folder, write_synced
from cwa_engine.result import (
    Ablation,
    Agreement,
    ControlDraw,
    CriticalSetStep,
    DamagePoint,
    Interaction,
    Prediction,
    RunResult,
    Separation,
    SequenceNll,
    Spike,
    SpikeRemovalStep,
    TopWeight,
    Verdict,
    to_plain,
)
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
    notes: tuple[str, ...] = ()  # what was mended or left out when it was loaded


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


def write_run(folder: Path, record: RunRecord) -> None:
    """Write the run's folder under a temporary name, flush it to disk, then rename it: it is there whole or not at all."""
    scratch = scratch_path(folder)
    scratch.mkdir(parents=True)
    try:
        for name, content in run_files(record):
            write_synced(scratch / name, content)
        scratch.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


PRUNED = ".pruned"  # end of the hidden name of a run folder that is being removed


def leftovers(runs: Path) -> list[Path]:
    """What processes that have ended left half written or half removed among run folders."""
    return [path for path in runs.glob(".*") if is_abandoned(path) or path.name.endswith(PRUNED)]


def run_files(record: RunRecord) -> Iterable[tuple[str, bytes]]:
    """(file name, content) of every file of a run; the summary last, so it can tell how long the others took."""
    began = time.perf_counter()
    tables = dict(run_tables(record.result))
    yield from tables.items()
    yield "manifest.json", _json(manifest(record, tables))
    yield "log.txt", "".join(f"{line}\n" for line in record.log).encode()
    timings = {**record.result.timings, "save": time.perf_counter() - began}
    yield "summary.json", _json(summary(record, timings))


def run_tables(result: RunResult) -> Iterable[tuple[str, bytes]]:
    """(file name, content) of every table. The same run gives the same bytes on the same machine."""
    for ranking in result.rankings:
        yield f"topk_{ranking.metric}.csv", _table(TopWeight, ranking.weights)
    if result.damage:
        yield "perturbation.csv", _table(DamagePoint, result.damage)
        yield "evaluation.csv", _table(SequenceNll, result.evaluations)
    if result.controls:
        yield "controls.csv", _table(ControlDraw, result.controls)
    if result.interactions:
        yield "interactions.csv", _table(Interaction, result.interactions)
    if result.stability:
        yield "stability.csv", _table(Agreement, result.stability)
    if result.predictions:
        yield "fidelity.csv", fidelity_csv(result)
    if result.ablations:
        yield "ablation.csv", _table(Ablation, result.ablations)
    if result.critical_set:
        yield "critical_set.csv", _table(CriticalSetStep, result.critical_set.steps)
    if spikes := _spikes(result):
        yield "spikes.csv", _table(Spike, spikes)
    if result.spike_removal:
        yield "spike_removal.csv", _table(SpikeRemovalStep, result.spike_removal.steps)


def _spikes(result: RunResult) -> list[Spike]:
    """Those of every ranking that has them: there is one metric of spikes."""
    return [spike for ranking in result.rankings for spike in ranking.spikes]


def fidelity_csv(result: RunResult) -> bytes:
    """A line for each sampled unit, with a column for each metric's score."""
    fixed = [f.name for f in dataclasses.fields(Prediction) if f.name != "scores"]
    columns = [*fixed, *(f"score_{fidelity.metric}" for fidelity in result.fidelity)]
    return _csv(columns, ([*(getattr(row, name) for name in fixed), *row.scores] for row in result.predictions))


def manifest(record: RunRecord, tables: Mapping[str, bytes]) -> dict[str, Any]:
    """All that is needed to run this again and to know whether it was the same."""
    spec, texts = record.spec, record.result.texts
    left_out = set(texts.too_short)
    numbers = [n for n in range(1, texts.texts + 1) if n not in left_out]  # of texts that differ, the first is 1
    scored, measured = split(numbers)
    if texts.damage and not texts.packed:
        measured = measured[: texts.damage]
    return {
        "run_id": record.run_id,
        "started": record.started,
        "command": record.command,
        "spec": spec.model_dump(mode="json"),
        "spec_sha256": spec.sha256(),
        "model": to_plain(record.model),
        "data": {
            "source": texts.source,
            "sha256": texts.sha256,
            "scored": scored,
            "scored_sha256": texts.scoring_sha256,
            "measured": measured,
            "measured_sha256": texts.evaluation_sha256,
            "too_short": list(texts.too_short),
            "overlap": texts.overlap,
        },
        "seeds": {"seed": spec.seed, "controls": [spec.seed + i for i in range(spec.control_seeds)]},
        "versions": {
            "cwtool": __version__,
            "python": platform.python_version(),
            **library_versions(),
        },
        "tables": {name: hashlib.sha256(content).hexdigest() for name, content in tables.items()},
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Versions of the libraries that a result may depend on, as they were when this process first asked."""
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def summary(record: RunRecord, timings: dict[str, float]) -> dict[str, Any]:
    """What the run found, in one file."""
    result = record.result
    return {
        "run_id": record.run_id,
        "started": record.started,
        "model": to_plain(record.model),
        "eligible": result.eligible,
        "texts": to_plain(result.texts),
        "baseline": to_plain(result.baseline),
        "numerical_floor": to_plain(result.floor) if result.floor else None,
        "rankings": [
            {"metric": r.metric, "structure": r.structure, "top": to_plain(r.weights[:TOP_IN_SUMMARY])}
            for r in result.rankings
        ],
        "halves": to_plain(result.halves),
        "damage": _damage_groups(result.damage, result.separations, result.verdicts),
        "interactions": to_plain(result.interactions),
        "stability": _stability(result),
        "fidelity": to_plain(result.fidelity),
        "ablation": to_plain(result.ablation_cost) if result.ablation_cost else None,
        "critical_set": to_plain(result.critical_set) if result.critical_set else None,
        "spikes": to_plain(_spikes(result)[:TOP_IN_SUMMARY]),
        "spike_removal": to_plain(result.spike_removal) if result.spike_removal else None,
        "gradients": result.gradients,
        "scores_from": result.scores_from,
        "batch_size": result.batch_size,
        "timings": timings,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _damage_groups(
    points: Sequence[DamagePoint], separations: Sequence[Separation], verdicts: Sequence[Verdict]
) -> list[dict[str, Any]]:
    """Per metric, k and perturbation: the critical set, each control with the ratio it is beaten by, the verdict.

    The position test has no critical set of its own, only its draws.
    """

    def group(row: DamagePoint | Separation | Verdict) -> tuple[str, int, str]:
        return row.metric, row.k, row.perturbation

    groups = []
    for key, grouped in itertools.groupby(points, key=group):
        members = list(grouped)
        critical = next((point for point in members if point.selection == "critical"), None)
        verdict = next((verdict for verdict in verdicts if group(verdict) == key), None)
        groups.append(
            {
                "metric": key[0],
                "k": key[1],
                "perturbation": key[2],
                "critical": to_plain(critical) if critical else None,
                "controls": [_without_key(row) for row in separations if group(row) == key],
                "elsewhere": [to_plain(point) for point in members if point.selection == "elsewhere"],
                "outcome": verdict.outcome if verdict else None,
                "verdict": verdict.sentence if verdict else None,
            }
        )
    return groups


def _without_key(row: Separation) -> dict[str, Any]:
    return {name: value for name, value in to_plain(row).items() if name not in ("metric", "k", "perturbation")}


def _stability(result: RunResult) -> list[dict[str, Any]]:
    """Means over all pairs of repeats, per metric and k."""
    found = []
    for (metric, k), rows in itertools.groupby(result.stability, key=lambda row: (row.metric, row.k)):
        pairs = list(rows)
        correlations = [pair.spearman for pair in pairs if pair.spearman is not None]
        ranking = next(ranking for ranking in result.rankings if ranking.metric == metric)
        found.append(
            {
                "metric": metric,
                "k": k,
                "pairs": len(pairs),
                "jaccard": statistics.fmean(pair.jaccard for pair in pairs),
                "chance": pairs[0].chance,
                "rbo": statistics.fmean(pair.rbo for pair in pairs),
                "spearman": statistics.fmean(correlations) if correlations else None,
                "in_every_repeat": sum(weight.stable is True for weight in ranking.top(k)),
            }
        )
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary of a run folder. Raises NotFound where there is none that can be read."""
    return _read_map(folder, "summary.json", ("run_id", "model", "texts", "baseline", "rankings", "damage"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises NotFound where there is none that can be read."""
    return _read_map(folder, "manifest.json", ("run_id", "spec", "model", "data", "tables"))


def _read_map(folder: Path, name: str, needed: Iterable[str]) -> dict[str, Any]:
    try:
        found = json.loads(_read(folder, name))
    except ValueError as error:
        raise _unreadable(folder, name, str(error)) from error
    if not isinstance(found, dict) or (missing := [key for key in needed if key not in found]):
        raise _unreadable(folder, name, f"it lacks {', '.join(missing)}" if isinstance(found, dict) else "it is no map")
    return found


def _unreadable(folder: Path, name: str, why: str) -> NotFound:
    return NotFound(f"{folder / name} cannot be read: {why}", hint="run it again: `cwtool jobs retry`")


def read_topk(folder: Path, metric: str | None, offset: int, limit: int) -> tuple[str, list[TopWeight]]:
    """(metric, rows `offset` to `offset + limit` of its ranking); without a metric, of the run's first one."""
    metrics = [ranking["metric"] for ranking in read_summary(folder)["rankings"]]
    chosen = metric or metrics[0]
    if chosen not in metrics:
        raise NotFound(f"run {folder.name} has no ranking by '{chosen}'", hint=f"it has: {', '.join(metrics)}")
    name = f"topk_{chosen}.csv"
    reader = csv.DictReader(io.StringIO(_read(folder, name)))
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


def _read(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text("utf-8")
    except FileNotFoundError:
        raise _no_file(folder, name) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(folder, name, str(error)) from error


def _no_file(folder: Path, name: str) -> NotFound:
    return NotFound(f"run {folder.name} has no {name}", hint="`cwtool results` lists finished runs")


def _table(kind: type, rows: Iterable[Any]) -> bytes:
    columns = [f.name for f in dataclasses.fields(kind)]
    return _csv(columns, ([getattr(row, name) for name in columns] for row in rows))


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)  # floats by repr: the shortest text that reads back as the same number
    return text.getvalue().encode()


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
