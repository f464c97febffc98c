"""The files of a run: written whole or not at all. `reading` reads them back. torch-free.

summary.json · manifest.json · topk_<metric>.csv · perturbation.csv · evaluation.csv · controls.csv · log.txt ·
SHA256SUMS, and where asked for interactions.csv · stability.csv · fidelity.csv · ablation.csv · critical_set.csv ·
spikes.csv · spike_removal.csv
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine import __version__
from cwa_engine.base.files import is_abandoned, write_folder
from cwa_engine.records.checksums import SUMS, sums_text
from cwa_engine.records.summary import damage_groups, numbers_of, spikes_of, stability_means
from cwa_engine.records.tables import Row, Table, fidelity_table
from cwa_engine.rows import (
    SHOWN,
    Ablation,
    Agreement,
    ControlDraw,
    CriticalSetStep,
    DamagePoint,
    Interaction,
    RunResult,
    SequenceNll,
    Spike,
    SpikeRemovalStep,
    TopWeight,
    to_plain,
)
from cwa_engine.spec import RunSpec

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
    """Write the run's folder: it is there whole or not at all."""
    write_folder(folder, run_files(record))


PRUNED = ".pruned"  # end of the hidden name of a run folder that is being removed


def leftovers(runs: Path) -> list[Path]:
    """What processes that have ended left half written or half removed among run folders."""
    return [path for path in runs.glob(".*") if is_abandoned(path) or path.name.endswith(PRUNED)]


def run_files(record: RunRecord) -> Iterable[tuple[str, bytes]]:
    """(file name, content) of every file of a run, the hashes of all others last."""
    hashes = {}
    for name, content in _files(record):
        hashes[name] = hashlib.sha256(content).hexdigest()
        yield name, content
    yield SUMS, sums_text(hashes)


def _files(record: RunRecord) -> Iterable[tuple[str, bytes]]:
    """The same without the hashes; the summary last, so it can tell how long the others took."""
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
    if spikes := spikes_of(result):
        yield "spikes.csv", _table(Spike, spikes)
    if result.spike_removal:
        yield "spike_removal.csv", _table(SpikeRemovalStep, result.spike_removal.steps)


def fidelity_csv(result: RunResult) -> bytes:
    """A line for each sampled unit, with a column for each metric's score."""
    return fidelity_table(fidelity.metric for fidelity in result.fidelity).to_bytes(result.predictions)


def manifest(record: RunRecord, tables: Mapping[str, bytes]) -> dict[str, Any]:
    """All that is needed to run this again and to know whether it was the same."""
    spec, texts = record.spec, record.result.texts
    scored, measured = numbers_of(texts)
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
        "sums": SUMS,
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
            {"metric": r.metric, "structure": r.structure, "top": to_plain(r.weights[:SHOWN])} for r in result.rankings
        ],
        "halves": to_plain(result.halves),
        "damage": damage_groups(result.damage, result.separations, result.verdicts),
        "interactions": to_plain(result.interactions),
        "stability": stability_means(result.rankings, result.stability),
        "fidelity": to_plain(result.fidelity),
        "ablation": to_plain(result.ablation_cost) if result.ablation_cost else None,
        "critical_set": to_plain(result.critical_set) if result.critical_set else None,
        "spikes": to_plain(spikes_of(result)[:SHOWN]),
        "spike_removal": to_plain(result.spike_removal) if result.spike_removal else None,
        "gradients": result.gradients,
        "scores_from": result.scores_from,
        "batch_size": result.batch_size,
        "timings": timings,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _table(kind: type[Row], rows: Iterable[Row]) -> bytes:
    return Table("", kind).to_bytes(rows)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
