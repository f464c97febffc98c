"""A study whose processes are killed half-way goes on where it stopped, and no cell runs twice."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import psutil
import pytest

from tests.conftest import CommandLine

CELLS = 4
STUDY = (
    "--models", "gpt2", "EleutherAI/pythia-70m", "--seeds", "0", "1", "--topk", "3", "--eval-limit", "8",
    "--control", "random", "--control-seeds", "60", "--name", "killed",
)  # fmt: skip


def kill_client(cwtool: CommandLine, client: subprocess.Popen[str]) -> None:
    client.kill()


def kill_daemon(cwtool: CommandLine, client: subprocess.Popen[str]) -> None:
    daemon = psutil.Process(cwtool.json("daemon", "status")["pid"])
    daemon.kill()
    psutil.wait_procs([daemon])
    assert client.wait(60) == 3
    assert client.stderr and "study resume" in client.stderr.read()


def kill_worker(cwtool: CommandLine, client: subprocess.Popen[str]) -> None:
    cwtool.kill(cwtool.worker_pid())
    client.kill()


def kill_all(cwtool: CommandLine, client: subprocess.Popen[str]) -> None:
    daemon, worker = (psutil.Process(pid) for pid in (cwtool.json("daemon", "status")["pid"], cwtool.worker_pid()))
    for process in (client, daemon, worker):
        process.kill()
    psutil.wait_procs([daemon, worker])


@pytest.mark.parametrize("kill", [kill_client, kill_daemon, kill_worker, kill_all])
def test_a_study_killed_half_way_goes_on_and_no_cell_runs_twice(
    own_cwtool: CommandLine, kill: Callable[[CommandLine, subprocess.Popen[str]], None]
) -> None:
    cwtool = own_cwtool
    client = cwtool.start("study", "run", *STUDY)
    assert client.stderr
    assert any(" running  2 " in line for line in client.stderr)
    kill(cwtool, client)
    client.wait(60)
    client.stdout.close() if client.stdout else None

    told = cwtool.json("study", "resume")
    assert [cell["state"] for cell in told["cells"]] == ["done"] * CELLS
    assert told["complete"]
    runs = {cell["run_id"] for cell in told["cells"]}
    with cwtool.client() as asked:
        jobs = {job.run_id: job.state for job in asked.jobs(kind="run", limit=100)}
    assert jobs == dict.fromkeys(runs, "done") and len(runs) == CELLS  # each was queued once
    assert {path.name for path in cwtool.settings.runs.iterdir()} == runs

    again = cwtool.json("study", "run", *STUDY)  # the same command goes on with the same study
    assert (again["study"], again["cells"]) == (told["study"], told["cells"])
    assert cwtool.json("jobs", "list")["total"] == CELLS
