"""What Ray costs beside the daemon: `python -m benchmarks.cluster [SECONDS]`.

The same cells, of about so many seconds each (20, if not given), on two CPU lanes of a daemon and on two slots of a Ray of this
machine's own, each with one thread, in turns. Two times are compared: from the first cell that begins to the last that ends,
and from typing the command to its answer, which has the starts of both in it. Ray runs its actors at a lower priority than
other programs; here they have the usual one, or what else runs on the machine would be measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lanes import random_model
from benchmarks.service import CWTOOL
from cwa_engine.records.run_report import open_run

LANES, CELLS, ROUNDS = 2, 4, 1
TRIED_SEEDS = 8, 64  # control draws of the runs by which it is found how many take as long as a cell shall


@dataclass(frozen=True)
class Studied:
    """Seconds, as the commands and the runs themselves say."""

    typed: float  # from typing the command to its answer
    worked: float  # from the first cell that began to the last that ended
    cells: tuple[float, ...]  # of each cell


def daemon_and_ray(cell_s: float) -> tuple[list[Studied], list[Studied]]:
    """The same study by two lanes of a fresh daemon and by two slots of a fresh Ray, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        models = [random_model(Path(folder) / f"model{number}", number) for number in range(LANES)]
        draws = _draws(Path(folder), models, cell_s)
        daemon, ray = [], []
        for turn in range(ROUNDS):
            daemon.append(_studied(Path(folder) / f"daemon{turn}", models, draws, ()))
            ray.append(_studied(Path(folder) / f"ray{turn}", models, draws, ("--on", "ray", "--slots", str(LANES))))
        return daemon, ray


def _draws(folder: Path, models: Sequence[str], cell_s: float) -> int:
    """How many draws of a control make a cell as long as it shall be."""
    few, many = (max(_studied(folder / f"tried{draws}", models, draws, ()).cells) for draws in TRIED_SEEDS)
    each = (many - few) / (TRIED_SEEDS[1] - TRIED_SEEDS[0])
    return max(TRIED_SEEDS[0], round(TRIED_SEEDS[0] + (cell_s - few) / each))


def _studied(home: Path, models: Sequence[str], draws: int, on: Sequence[str]) -> Studied:
    """One study of `CELLS` cells, from nothing: no daemon, no Ray, no kept scores."""
    runtime = Path(tempfile.mkdtemp(prefix="cw"))  # short, for sockets lie below it
    env = {
        **os.environ,
        "CWTOOL_HOME": str(home),
        "CWTOOL_CACHE_DIR": str(home / "cache"),
        "XDG_RUNTIME_DIR": str(runtime),
        "CWTOOL_CPU_LANES": str(LANES),
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "HF_HUB_OFFLINE": "1",
    }
    runtime.chmod(0o700)
    seeds = [str(seed) for seed in range(CELLS // len(models))]
    run = (
        "--topk",
        "10",
        "--eval-limit",
        "12",
        "--seq-len",
        "128",
        "--control",
        "random",
        "--control-seeds",
        str(draws),
    )
    try:
        began = time.perf_counter()
        done = subprocess.run(
            [CWTOOL, "study", "run", "--models", *models, "--seeds", *seeds, *run, *on, "--json"],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        typed = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"the study failed:\n{done.stdout}\n{done.stderr}")
    finally:
        if not on:
            subprocess.run([CWTOOL, "daemon", "stop"], env=env, capture_output=True, check=False)
        shutil.rmtree(runtime, ignore_errors=True)
    reports = [open_run(home / "runs" / cell["run_id"]) for cell in json.loads(done.stdout)["cells"]]
    assert len(reports) == CELLS
    took = tuple(sum(report.summary.timings.values()) for report in reports)
    starts = [report.summary.started for report in reports]
    ends = [start + seconds for start, seconds in zip(starts, took, strict=True)]
    return Studied(typed, max(ends) - min(starts), took)


def said(cell_s: float = 20.0) -> str:
    """The row of the table."""
    daemon, ray = daemon_and_ray(cell_s)
    worked = sum(one.worked for one in ray) / sum(one.worked for one in daemon)
    typed = sum(one.typed for one in ray) / sum(one.typed for one in daemon)
    cells = [seconds for one in daemon for seconds in one.cells]
    per_cell = sum(seconds for one in ray for seconds in one.cells) / sum(cells)
    return (
        f"x{worked:.2f} from the first cell to the last ({_of(ray, 'worked')} over {_of(daemon, 'worked')} s), x{typed:.2f} "
        f"from typing to the answer ({_of(ray, 'typed')} over {_of(daemon, 'typed')} s); a cell itself x{per_cell:.2f}; "
        f"{CELLS} cells of {sum(cells) / len(cells):.0f} s"
    )


def _of(studies: Sequence[Studied], name: str) -> str:
    return " and ".join(f"{getattr(one, name):.1f}" for one in studies)


if __name__ == "__main__":
    print(said(*map(float, sys.argv[1:])))
