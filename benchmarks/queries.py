"""Queries over many run folders: copies of a small real run under other ids, with other figures and right hashes."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import spread
from benchmarks.service import CWTOOL, MODEL
from cwa_engine.notebook import analyze
from cwa_engine.records.checksums import SUMS, sums_text

RUNS = 2000
SQL = (
    "SELECT model, v.outcome, count(*) AS sets, avg(d.delta_nll) AS damage, min(baseline_nll), max(baseline_nll) FROM runs"
    " JOIN damage d USING (run_id) JOIN verdicts v USING (run_id, metric, k, perturbation)"
    " WHERE d.selection = 'critical' GROUP BY ALL ORDER BY damage DESC"
)


@dataclass(frozen=True)
class Taken:
    """How long a command took, in seconds."""

    wall: float
    processor: float


def over_many_runs(rounds: int) -> tuple[Taken, list[Taken], list[Taken]]:
    """From typing a query of three tables to its answer: the first time, later, and each time after a new run."""
    with tempfile.TemporaryDirectory() as home:
        files = _a_run(Path(home))
        runs = Path(home) / "runs"
        for number in range(RUNS):
            _copy(files, runs, number)
        first = _seconds(home)
        later = [_seconds(home) for _ in range(rounds)]
        with_a_new_one = []
        for number in range(RUNS, RUNS + rounds):
            _copy(files, runs, number)
            with_a_new_one.append(_seconds(home))
    return first, later, with_a_new_one


def _a_run(home: Path) -> dict[str, bytes]:
    """The files of a run of SmolLM2: two metrics, the top hundred, two controls."""
    report = analyze(
        MODEL, metrics=["grad_x_weight", "magnitude"], topk=[10, 100], eval_limit=4, seq_len=64, control_seeds=4
    )
    folder = report.save(home / "run")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != SUMS}


def _copy(files: dict[str, bytes], runs: Path, number: int) -> None:
    """The run as one of another id and another baseline."""
    run_id = f"20260101-{number:06}-smollm2-135m-{number:04}"
    summary, manifest = json.loads(files["summary.json"]), json.loads(files["manifest.json"])
    summary["run_id"] = manifest["run_id"] = run_id
    summary["baseline"]["nll"] += number / RUNS
    contents = {**files, "summary.json": json.dumps(summary).encode(), "manifest.json": json.dumps(manifest).encode()}
    folder = runs / run_id
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / SUMS).write_bytes(sums_text({name: hashlib.sha256(c).hexdigest() for name, c in contents.items()}))


def said(taken: list[Taken]) -> str:
    """Seconds, and how much of that was processor time: another program may have the processor meanwhile."""
    return f"{spread([one.wall for one in taken])} s, {spread([one.processor for one in taken]).median:.2g} s of them computing"


def _seconds(home: str) -> Taken:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    asked = [CWTOOL, "results", "query", SQL]
    done = subprocess.run(asked, env={**os.environ, "CWTOOL_HOME": home}, capture_output=True, check=True)
    assert done.stdout and b"left out" not in done.stderr
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
