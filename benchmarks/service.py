"""The daemon and its clients, measured from outside: real processes, real sockets, the real command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.measure import Spread, spread
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient, Client, stop_daemon
from cwa_daemon.control.store import Store
from cwa_engine.spec import RunSpec

CWTOOL = str(Path(sys.executable).with_name("cwtool"))
MODEL = "smollm2-135m"
REQUESTS, SUBSCRIBERS = 500, 50


@contextmanager
def own_daemon() -> Iterator[Settings]:
    """A state folder whose daemon is stopped at the end."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))
        try:
            yield settings
        finally:
            stop_daemon(settings)


def cold_over_warm(rounds: int) -> tuple[Spread, Spread, Spread]:
    """Seconds from the command to its first progress in a cold process, in a warm one, and their ratio."""
    cold, warm = [], []
    with own_daemon() as settings:
        for _ in range(rounds):
            stop_daemon(settings)
            cold.append(_to_first_progress(settings))
            warm.append(_to_first_progress(settings))
    return spread(cold), spread(warm), spread([c / w for c, w in zip(cold, warm, strict=True)])


def _to_first_progress(settings: Settings) -> float:
    """Seconds until `cwtool run` says that the first stage with the model has begun; then the run goes to its end."""
    began = time.perf_counter()
    command = [CWTOOL, "run", "--model", MODEL, "--eval-limit", "2", "--no-perturbation"]
    env = {**os.environ, "CWTOOL_HOME": str(settings.home)}
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env, text=True)
    assert run.stderr
    seconds = next(time.perf_counter() - began for line in run.stderr if line.startswith("baseline ..."))
    run.communicate()
    return seconds


def added_jobs() -> tuple[Spread, Spread]:
    """Milliseconds in which a job is on the disk, and in which an event is written that need not be there at once."""
    jobs, events = [], []
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:  # a temporary folder may be in memory
        store = Store(Path(folder) / "jobs.sqlite")
        for number in range(REQUESTS):
            began = time.perf_counter()
            store.add_job(
                run_id=str(number), kind="run", state="queued", spec={"model": MODEL}, command="", device="cpu",
                client_key=str(number), created=0.0,
            )  # fmt: skip
            queued = time.perf_counter()
            store.append_event(str(number), {"kind": "state", "state": "queued", "error": None})
            jobs.append(1000 * (queued - began))
            events.append(1000 * (time.perf_counter() - queued))
        store.close()
    return spread(jobs), spread(events)


def round_trips() -> Spread:
    """Milliseconds of a status request, over an open connection."""
    with own_daemon() as settings, Client.connect(settings) as client:
        times = []
        for _ in range(REQUESTS):
            began = time.perf_counter()
            client.status()
            times.append(1000 * (time.perf_counter() - began))
    return spread(times)


def replayed_events() -> float:
    """Events per second that one client is sent of a run that has ended."""
    with own_daemon() as settings, Client.connect(settings) as client:
        run_id = client.submit(_many_events())
        events = sum(1 for _ in client.follow(run_id))
        began = time.perf_counter()
        for _ in range(10):
            assert sum(1 for _ in client.follow(run_id)) == events
        return 10 * events / (time.perf_counter() - began)


def subscribers_over_none(rounds: int) -> tuple[Spread, Spread]:
    """Time of a run that fifty clients follow over one that nobody follows, and what they take of the processor."""
    ratios, shares = [], []
    with own_daemon() as settings:
        _run_followed_by(settings, 0)
        for number in range(rounds):
            followers = (SUBSCRIBERS, 0) if number % 2 else (0, SUBSCRIBERS)
            runs = {count: _run_followed_by(settings, count) for count in followers}
            seconds, busy = runs[SUBSCRIBERS]
            ratios.append(seconds / runs[0][0])
            shares.append((busy - runs[0][1]) / (seconds * (os.cpu_count() or 1)))
    return spread(ratios), spread(shares)


def _run_followed_by(settings: Settings, followers: int) -> tuple[float, float]:
    """Seconds that a run took in its worker, and processor seconds of the daemon and of these clients from first to last."""

    async def follow(client: AsyncClient, run_id: str) -> None:
        async for _ in client.follow(run_id):
            pass

    async def work() -> tuple[float, float]:
        clients = [await AsyncClient.connect(settings) for _ in range(followers + 1)]
        processes = psutil.Process(), psutil.Process((await clients[0].status()).pid)
        before = _processor_seconds(processes)
        run_id = await clients[0].submit(_many_events())
        await asyncio.gather(*(follow(client, run_id) for client in clients[1:]), follow(clients[0], run_id))
        busy = _processor_seconds(processes) - before
        job = await clients[0].job(run_id)
        for client in clients:
            await client.close()
        assert job.finished and job.started
        return job.finished - job.started, busy

    return asyncio.run(work())


def _processor_seconds(processes: Iterable[psutil.Process]) -> float:
    return sum(float(times.user + times.system) for times in (process.cpu_times() for process in processes))


def _many_events() -> RunSpec:
    """Ten seconds of SmolLM2 with a point of damage every few of them."""
    return RunSpec(model=MODEL, eval_limit=4, topk=(1, 10), control_seeds=5, seq_len=64)
