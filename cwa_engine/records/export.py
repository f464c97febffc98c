"""The files of a run: written whole or not at all. `reading` reads them back. torch-free.

summary.json · manifest.json · topk_<metric>.csv · scores.csv · perturbation.csv · evaluation.csv · controls.csv ·
log.txt · SHA256SUMS, and where asked for interactions.csv · stability.csv · fidelity.csv · ablation.csv · critical_set.csv ·
spikes.csv · spike_removal.csv · tasks.csv
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

from cwa_engine.base.files import is_abandoned, write_folder
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.version import __version__
from cwa_engine.damage.elimination import ELIMINATION
from cwa_engine.questions.registry import STAGE_QUESTIONS
from cwa_engine.records.checksums import SUMS, sums_text
from cwa_engine.records.summary import answers_in_summary, damage_groups, numbers_of
from cwa_engine.records.tables import CONTROLS, EVALUATION, PERTURBATION, SCORES, topk_table
from cwa_engine.result import RunResult
from cwa_engine.rows import SHOWN, to_plain
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
    began = time.perf_counter()
    tables: dict[str, str] = {}  # file name -> sha256
    for name, content in run_tables(record.result):
        tables[name] = hashlib.sha256(content).hexdigest()
        yield name, content
    others = {
        "manifest.json": _json(manifest(record, tables)),
        "log.txt": "".join(f"{line}\n" for line in record.log).encode(),
    }
    yield from others.items()
    timings = {**record.result.timings, "save": time.perf_counter() - began}  # hence the summary comes after the others
    others["summary.json"] = _json(summary(record, timings))
    yield "summary.json", others["summary.json"]
    yield SUMS, sums_text(tables | {name: hashlib.sha256(content).hexdigest() for name, content in others.items()})


def run_tables(result: RunResult) -> Iterable[tuple[str, bytes]]:
    """(file name, content) of every table. The same run gives the same bytes on the same machine."""
    for ranking in result.rankings:
        table = topk_table(ranking.metric)
        yield table.name, table.to_bytes(ranking.weights)
    if bins := [row for ranking in result.rankings for row in ranking.bins]:
        yield SCORES.name, SCORES.to_bytes(bins)
    if result.damage:
        yield PERTURBATION.name, PERTURBATION.to_bytes(result.damage)
        yield EVALUATION.name, EVALUATION.to_bytes(result.evaluations)
    if result.controls:
        yield CONTROLS.name, CONTROLS.to_bytes(result.controls)
    for question in STAGE_QUESTIONS:
        for found in question.tables(result):
            yield found.table.name, found.table.to_bytes(found.rows)


def manifest(record: RunRecord, tables: Mapping[str, str]) -> JsonMap:
    """All that is needed to run this again and to know whether it was the same. `tables`: file name -> sha256."""
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
        "layers": record.result.layers,
        "ranked": to_plain(record.result.ranked),
        "stored": to_plain(record.result.stored),
        "control_rule": ELIMINATION,
        "seeds": {"seed": spec.seed, "controls": [spec.seed + i for i in range(spec.control_seeds)]},
        "versions": {
            "cwtool": __version__,
            "python": platform.python_version(),
            **library_versions(),
        },
        "sums": SUMS,
        "tables": dict(tables),
        "machine": {"platform": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Versions of the libraries that a result may depend on, as they were when this process first asked."""
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def summary(record: RunRecord, timings: dict[str, float]) -> JsonMap:
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
        **answers_in_summary(result),
        "gradients": result.gradients,
        "scores_from": result.scores_from,
        "batch_size": result.batch_size,
        "timings": timings,
        "peak_memory_bytes": result.peak_memory_bytes,
    }


def _json(value: JsonMap) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
