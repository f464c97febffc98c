"""How many threads this process should compute with, and how they wait. It must be set before torch is imported."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from cwa_engine.machine.cgroups import THIS_PROCESS, groups


def granted_processors(process: Path = THIS_PROCESS) -> float:
    """Processors that this process may use, as a number: its affinity, or the quota of its control groups if that is less."""
    return min([float(_allowed()), *_quotas(process)])


def thread_settings(environment: Mapping[str, str], process: Path = THIS_PROCESS, sharers: int = 1) -> dict[str, str]:
    """Variables of OpenMP, without those that `environment` sets itself. Set them before torch is imported.

    OpenMP counts the processors of the affinity, not the quota of a control group. With more threads than the quota, each
    thread waits for those that the system has stopped. `sharers` processes that compute at once have a share each.
    """
    settings = {}
    granted = math.ceil(granted_processors(process))
    if granted < _allowed() or sharers > 1:
        threads = min(granted, psutil.cpu_count(logical=False) or granted)
        settings["OMP_NUM_THREADS"] = str(max(1, threads // sharers))
    if "OMP_WAIT_POLICY" not in environment:
        settings["GOMP_SPINCOUNT"] = SPIN
    return {name: value for name, value in settings.items() if name not in environment}


SPIN = "1000"


def _allowed() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(process: Path) -> Iterator[float]:
    for group in groups("cpu", process):
        if group.version == 1:
            quota, period = group.number("cpu.cfs_quota_us"), group.number("cpu.cfs_period_us")
        else:
            quota, period = group.number("cpu.max"), int((group.words("cpu.max") or ["max", "0"])[-1])
        if quota and period and quota > 0:
            yield quota / period
