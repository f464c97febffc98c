"""Processes are killed at random while many clients submit: nothing is lost, nothing is half, nothing is left behind.

`CWTOOL_CHAOS="200 30" python -m pytest tests/end_to_end/test_chaos.py` runs 200 jobs through 30 kills.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import psutil
import pytest

from cwa_daemon.client import AsyncClient, stop_daemon
from cwa_daemon.lifecycle import running_pid
from cwa_daemon.settings import Settings
from cwa_engine.errors import CwaError, DaemonUnreachable
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine

JOBS, KILLS = (int(number) for number in os.environ.get("CWTOOL_CHAOS", "20 4").split())
CLIENTS = 10
SPECS = [
    RunSpec(model=model, topk=(k,), metrics=(metric,), eval_limit=4, control_seeds=2)
    for model in ("gpt2", "EleutherAI/pythia-70m")
    for k, metric in ((3, "grad_x_weight"), (5, "magnitude"))
]
MOST_GROWTH_BYTES = 20_000_000


async def test_jobs_of_many_clients_survive_random_kills(
    own_cwtool: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "CWTOOL_HOME"):
        monkeypatch.setenv(name, own_cwtool.env[name])
    settings, luck = own_cwtool.settings, random.Random(5)
    expected = [tables(await undisturbed(settings, spec)) for spec in SPECS]
    ended = asyncio.Event()
    killer = asyncio.create_task(kill_at_random(settings, luck, ended))
    runs = await asyncio.gather(*(submit_and_follow(settings, number) for number in range(CLIENTS)))
    ended.set()
    kills = await killer

    jobs = {run_id: spec for of_client in runs for run_id, spec in of_client.items()}
    assert len(jobs) == JOBS // CLIENTS * CLIENTS
    client = await AsyncClient.connect(settings)
    states = []
    for run_id, spec in jobs.items():
        job = await client.job(run_id)
        states.append(job.state)
        assert job.ended and (job.state == "done") == (job.error is None), job
        assert job.state in ("done", "failed", "interrupted")
        if job.state == "done":
            assert tables((await client.result(run_id)).folder) == expected[SPECS.index(spec)]
        else:
            assert job.error and job.error["message"]
    listed = await client.jobs(limit=1000)
    assert sorted(job.run_id for job in listed) == sorted([*jobs, *(job.run_id for job in listed[-len(SPECS) :])])
    growth = (await client.status()).memory_bytes
    await client.close()
    # A job that a kill hits ends; so there are no more of these than kills.
    assert states.count("done") >= len(states) - kills
    assert growth < MEMORY_AT_START + MOST_GROWTH_BYTES
    assert not [path for path in settings.runs.iterdir() if path.name.startswith(".")]
    pids = processes_of(settings)
    await asyncio.to_thread(stop_daemon, settings)
    assert psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)[1] == []
    assert not settings.runtime_dir.exists()


MEMORY_AT_START = 60_000_000  # of a control process that has just been started; it does not import torch


async def undisturbed(settings: Settings, spec: RunSpec) -> Path:
    client = await AsyncClient.connect(settings)
    run_id = await client.submit(spec)
    async for _ in client.follow(run_id):
        pass
    folder = (await client.result(run_id)).folder
    await client.close()
    return folder


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


async def submit_and_follow(settings: Settings, number: int) -> dict[str, RunSpec]:
    """One client's jobs, submitted again with the same key whenever the daemon went away, and followed to their ends."""
    runs: dict[str, RunSpec] = {}
    for job in range(JOBS // CLIENTS):
        spec = SPECS[(number + job) % len(SPECS)]
        runs[await insist(settings, "submit", spec, f"chaos-{number}-{job}")] = spec
    for run_id in runs:
        await insist(settings, "follow", run_id)
    return runs


async def insist(settings: Settings, what: str, *args: object) -> str:
    """Do something with a daemon that may die at any moment; whoever finds none starts one."""
    while True:
        try:
            client = await AsyncClient.connect(settings)
        except CwaError:
            continue
        try:
            if what == "submit":
                spec, key = args
                return await client.submit(spec, client_key=key)  # type: ignore[arg-type]
            async for _ in client.follow(str(args[0])):
                pass
            return ""
        except DaemonUnreachable:
            continue
        finally:
            await client.close()


async def kill_at_random(settings: Settings, luck: random.Random, ended: asyncio.Event) -> int:
    """Kill workers and control processes until it has been done often enough or all jobs have ended; gives how often."""
    done = 0
    while done < KILLS and not ended.is_set():
        await wait_for(ended, luck.uniform(0.2, 4.0))
        pids = processes_of(settings)
        if pids:
            os.kill(luck.choice(pids), luck.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV]))
            done += 1
    return done


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def processes_of(settings: Settings) -> list[int]:
    """The control process and its workers."""
    pid = running_pid(settings)
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children())] if pid else []
    except psutil.NoSuchProcess:
        return []
