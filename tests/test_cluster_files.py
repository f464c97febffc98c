"""The files to copy in examples/cluster are what Ray and a shell take, and the commands in them are those of cwtool."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "examples/cluster"
SLURM, CLUSTER = FOLDER / "slurm.sh", FOLDER / "ray-cluster.yaml"


def test_ray_takes_the_cluster_file() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    ray = pytest.importorskip("ray")
    content = yaml.safe_load(CLUSTER.read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(content, schema)
    assert content["max_workers"] == len(content["provider"]["worker_ips"])
    for part in ("head", "worker"):
        *_, start = content[f"{part}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token" in start and "--disable-usage-stats" in start
        _known_to_ray(start)


def test_a_shell_takes_the_slurm_job() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, SLURM], check=True)


def test_the_slurm_job_starts_the_study_behind_a_token_on_all_nodes(tmp_path: Path) -> None:
    """With programs in place of Slurm's and Ray's that write down how they are called."""
    for name in ("srun", "ray", "scontrol"):
        said = "echo node1; echo node2" if name == "scontrol" else ":"
        address = '[[ "$*" == *all-ip-addresses* ]] && echo "10.0.0.1 10.1.0.1"; ' if name == "srun" else ""
        (tmp_path / name).write_text(
            f'#!/bin/bash\necho "{name} $* [$RAY_AUTH_MODE]" >> "$CALLS"\n{address}{said}\nexit 0\n'
        )
        (tmp_path / name).chmod(0o755)
    calls = tmp_path / "calls"
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "CALLS": str(calls),
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    subprocess.run(["bash", SLURM, "three-sizes.toml"], env=env, check=True)
    *_, last = calls.read_text().splitlines()
    assert last == (
        "srun --nodes=2 --ntasks-per-node=1 ray symmetric-run --address 10.0.0.1:6379 --min-nodes 2 --disable-usage-stats"
        " -- cwtool study run three-sizes.toml --on ray:auto [token]"
    )
    assert any(line.startswith("ray get-auth-token --generate") for line in calls.read_text().splitlines())
    assert subprocess.run(["bash", SLURM], env=env, capture_output=True, check=False).returncode != 0  # without a study


def _known_to_ray(line: str) -> None:
    """`ray start` has the options of a command line."""
    start = pytest.importorskip("ray.scripts.scripts").start
    known = {name for option in start.params for name in (*option.opts, *option.secondary_opts)}
    used = {word.partition("=")[0] for word in shlex.split(line) if re.match(r"--\w", word)}
    assert used and used <= known
