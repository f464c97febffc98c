"""A study on two CPU lanes of a daemon and on one, each lane with one thread: `python -m benchmarks.lanes`."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.service import CWTOOL
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import Client, stop_daemon

MODELS, SEEDS = 3, 4  # twelve cells
_RUN = ("--topk", "10", "--eval-limit", "12", "--control-seeds", "8", "--seq-len", "128", "--no-cache")


@dataclass(frozen=True)
class Studied:
    """How long a study took from typing its command, and on which lane each cell ran, and how often a model was loaded."""

    seconds: float
    cells: dict[str, int]
    loads: int


def one_and_two_lanes() -> tuple[Studied, Studied]:
    """The same study by a fresh daemon with one lane, and by another with two."""
    with tempfile.TemporaryDirectory() as folder:
        models = [random_model(Path(folder) / f"model{number}", number) for number in range(MODELS)]
        return _studied(Path(folder) / "one", models, 1), _studied(Path(folder) / "two", models, 2)


def random_model(folder: Path, seed: int) -> str:
    """A LLaMA of 10M random weights, in a folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from cwa_engine.models.guide_config import byte_tokenizer

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=12, num_attention_heads=4
    )
    make: Any = AutoModelForCausalLM.from_config  # untyped
    make(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _studied(home: Path, models: list[str], lanes: int) -> Studied:
    settings = Settings(home=home)
    env = {
        **os.environ,
        "CWTOOL_HOME": str(home),
        "CWTOOL_CPU_LANES": str(lanes),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    seeds = [str(seed) for seed in range(SEEDS)]
    command = [CWTOOL, "study", "run", "--models", *models, "--seeds", *seeds, *_RUN]
    try:
        began = time.perf_counter()
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"the study failed:\n{done.stdout}\n{done.stderr}")
        with Client.connect(settings) as client:
            jobs = client.jobs(kind="run")
            said = [(job, event) for job in jobs for event in client.follow(job.run_id) if event["kind"] == "note"]
    finally:
        stop_daemon(settings)
    assert len(jobs) == MODELS * SEEDS and all(job.state == "done" for job in jobs)
    warm = sum(event["text"] == f"{job.model} is warm" for job, event in said)
    cells: dict[str, int] = {}
    for job in jobs:
        cells[job.device] = cells.get(job.device, 0) + 1
    return Studied(seconds, dict(sorted(cells.items())), len(jobs) - warm)


def said() -> str:
    """The row of the table."""
    one, two = one_and_two_lanes()
    share = " and ".join(f"{count} on {lane}" for lane, count in two.cells.items())
    return (
        f"x{two.seconds / one.seconds:.2f} ({two.seconds:.0f} s over {one.seconds:.0f} s); {share}; "
        f"{two.loads} loads of {MODELS} models, {one.loads} on one lane"
    )


if __name__ == "__main__":
    print(said())
