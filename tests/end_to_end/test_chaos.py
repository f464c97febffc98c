"""Whatever happens to processes and disks while many clients submit, every job is done in the end, and nobody lends a hand.

Processes are killed and frozen, the daemon is stopped, the disk of the state folder and that of the output folders fill up.
`CWTOOL_CHAOS="200 40 7" python -m pytest tests/end_to_end/test_chaos.py` runs 200 jobs through 40 disturbances, drawn by
seed 7.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from cwa_daemon.base.address import running_pid
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient, stop_daemon
from cwa_engine.base.errors import CwaError, NotFound
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine

JOBS, DISTURBANCES, SEED = (int(number) for number in os.environ.get("CWTOOL_CHAOS", "20 4 5").split())
CLIENTS = 10
SPECS = [
    RunSpec(model=model, topk=(k,), metrics=(metric,), eval_limit=4, control_seeds=2)
    for model in ("gpt2", "EleutherAI/pythia-70m")
    for k, metric in ((3, "grad_x_weight"), (5, "magnitude"))
]
MEMORY_AT_START = 60_000_000  # of a control process that has just been started; it does not import torch
MOST_GROWTH_BYTES = 20_000_000
STATE_DISK_KB, OUTPUT_DISK_KB = 60_000 + 200 * JOBS, 4_000 + 200 * JOBS


@dataclass
class Chaos:
    """A daemon and its disks, and what is done to them."""

    settings: Settings
    outputs: Path
    luck: random.Random = field(default_factory=lambda: random.Random(SEED))
    done: Counter[str] = field(default_factory=Counter)

    async def disturb(self, ended: asyncio.Event) -> None:
        """Until it has been done often enough, or all jobs have ended."""
        deeds = [self.kill_worker, self.kill_control, self.kill_both, self.freeze, self.stop]
        if os.path.ismount(self.outputs):
            deeds.append(self.fill)
        while self.done.total() < DISTURBANCES and not ended.is_set():
            await wait_for(ended, self.luck.uniform(0.2, 4.0))
            deed = self.luck.choice(deeds)
            if await deed():
                self.done[deed.__name__] += 1

    async def kill_worker(self) -> bool:
        return kill(self.luck.sample(workers_of(self.settings), 1) if workers_of(self.settings) else [])

    async def kill_control(self) -> bool:
        return kill(control_of(self.settings))

    async def kill_both(self) -> bool:
        return kill(control_of(self.settings) + workers_of(self.settings))

    async def freeze(self) -> bool:
        """The worker, the control process, or both stand still for some seconds."""
        control, workers = control_of(self.settings), workers_of(self.settings)
        pids = self.luck.choice([control, workers, control + workers])
        frozen = [pid for pid in pids if send(pid, signal.SIGSTOP)]
        await asyncio.sleep(self.luck.uniform(0.5, 5.0))
        for pid in frozen:
            send(pid, signal.SIGCONT)
        return bool(frozen)

    async def stop(self) -> bool:
        with contextlib.suppress(CwaError):  # it may be killed at that very moment, or be slow
            return await asyncio.to_thread(stop_daemon, self.settings) is not None
        return False

    async def fill(self) -> bool:
        """One of the disks is full for some seconds."""
        filler = fill(self.luck.choice([self.settings.home, self.outputs]))
        await asyncio.sleep(self.luck.uniform(1.0, 4.0))
        filler.unlink()
        return True


@pytest.mark.timeout(240 + 15 * JOBS)
async def test_jobs_of_many_clients_are_all_done_whatever_is_killed_frozen_stopped_or_full(
    small_disks: tuple[Path, Path], own_cwtool: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, outputs = small_disks
    for name in ("HF_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, own_cwtool.env[name])
    monkeypatch.setenv("CWTOOL_HOME", str(home))
    settings = Settings(home=home)
    try:
        await survive(Chaos(settings, outputs))
    finally:
        stop_daemon(settings)


async def survive(chaos: Chaos) -> None:
    settings = chaos.settings
    expected = [tables(await undisturbed(settings, spec)) for spec in SPECS]
    ended = asyncio.Event()
    disturber = asyncio.create_task(chaos.disturb(ended))
    runs = await asyncio.gather(*(submit_and_follow(chaos, number) for number in range(CLIENTS)))
    ended.set()
    await disturber
    print(dict(chaos.done))

    jobs = {run_id: spec for of_client in runs for run_id, spec in of_client.items()}
    assert len(jobs) == JOBS // CLIENTS * CLIENTS
    async with connected(settings) as client:
        for run_id, spec in jobs.items():
            job = await client.job(run_id)
            assert (job.state, job.error, job.copy_error) == ("done", None, None), job
            folder = (await client.result(run_id)).folder
            number = next(
                number for number, known in enumerate(SPECS) if known == spec.model_copy(update={"output": None})
            )
            assert tables(folder) == expected[number]
            if spec.output:
                assert files(spec.output) == files(folder)
        listed = [job.run_id for job in await client.jobs(limit=1000)]
        assert sorted(listed) == sorted([*jobs, *listed[-len(SPECS) :]])  # and none was queued twice
        assert (await client.status()).memory_bytes < MEMORY_AT_START + MOST_GROWTH_BYTES
    folders = {path.name for path in settings.runs.iterdir()}
    assert folders == set(listed)  # nothing is half written, and nothing is there twice
    pids = control_of(settings) + workers_of(settings)
    await asyncio.to_thread(stop_daemon, settings)
    assert psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)[1] == []
    assert workers_of(settings) == []
    assert not settings.runtime_dir.exists()
    assert list(settings.workers.iterdir()) == []
    assert list(settings.home.rglob(".*")) == []


async def undisturbed(settings: Settings, spec: RunSpec) -> Path:
    async with connected(settings) as client:
        run_id = await client.submit(spec)
        async for _ in client.follow(run_id):
            pass
        return (await client.result(run_id)).folder


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


async def submit_and_follow(chaos: Chaos, number: int) -> dict[str, RunSpec]:
    """One client's jobs, submitted again with the same key whenever the daemon went away, and followed to their ends."""
    runs: dict[str, RunSpec] = {}
    for job in range(JOBS // CLIENTS):
        spec = SPECS[(number + job) % len(SPECS)]
        if job % 2 == 0:
            spec = spec.model_copy(update={"output": chaos.outputs / f"{number}-{job}"})
        runs[await insist(chaos.settings, "submit", spec, f"chaos-{number}-{job}")] = spec
    for run_id in runs:
        await insist(chaos.settings, "follow", run_id)
    return runs


async def insist(settings: Settings, what: str, *args: object) -> str:
    """Do something with a daemon that may die at any moment, or have no room; whoever finds none starts one."""
    while True:
        try:
            async with connected(settings) as client:
                if what == "submit":
                    spec, key = args
                    return await client.submit(spec, client_key=key)  # type: ignore[arg-type]
                async for _ in client.follow(str(args[0])):
                    pass
                return ""
        except NotFound:
            raise  # a job was lost
        except CwaError:
            await asyncio.sleep(0.2)


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[AsyncClient]:
    client = await AsyncClient.connect(settings)
    try:
        yield client
    finally:
        await client.close()


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def kill(pids: list[int]) -> bool:
    hit = [send(pid, signal.SIGKILL) for pid in pids]  # all of them
    return any(hit)


def send(pid: int, signum: signal.Signals) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def control_of(settings: Settings) -> list[int]:
    pid = running_pid(settings)
    return [pid] if pid else []


def workers_of(settings: Settings) -> list[int]:
    """The workers of a state folder, whoever has started them."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or []
        if "cwa_daemon.worker.main" in command and str(settings.workers) in command:
            found.append(process.info["pid"])
    return found


def fill(folder: Path) -> Path:
    """Take all space that is left, to the last byte."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**16, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The state folder and one for outputs, each a small file system of its own, where such can be mounted."""
    folders = (tmp_path / "home", tmp_path / "outputs")
    for folder, size_kb in zip(folders, (STATE_DISK_KB, OUTPUT_DISK_KB), strict=True):
        folder.mkdir(mode=0o700)
        options = f"size={size_kb}k,mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    yield folders
    for folder in filter(os.path.ismount, folders):
        subprocess.run(["umount", "-l", folder], check=True)
