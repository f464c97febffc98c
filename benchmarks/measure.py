"""Timing in alternating rounds, and peak memory measured in a separate process."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio_in_turns(ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> Spread:
    """Time of `ours` over time of `plain`, one run of each in a round, after one warm-up round."""
    ratios = []
    for number in range(rounds + 1):
        times = [_seconds(work) for work in ((ours, plain) if number % 2 else (plain, ours))]
        if number:
            ratios.append(times[0] / times[1] if number % 2 else times[1] / times[0])
    return spread(ratios)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_above(work: Callable[[], object]) -> int:
    """Peak of the resident memory that a piece of work adds, in bytes, sampled a thousand times a second."""
    process, ended, peak = psutil.Process(), threading.Event(), 0
    before: int = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        ended.set()
        watcher.join()
    return max(0, peak - before)


def in_a_process_of_its_own(case: str) -> float:
    """The last number that `python -m benchmarks.cases CASE` prints. A new process has no memory from earlier work."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.cases", case], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_parts(*parts: Callable[[], Iterable[str]]) -> None:
    """Print what these measure, or those of them that the command line names."""
    known = {part.__name__: part for part in parts}
    for name in sys.argv[1:] or known:
        print(f"{name}: {known[name].__doc__}\n", flush=True)
        for text in known[name]():
            print(text, flush=True)
        print(flush=True)
