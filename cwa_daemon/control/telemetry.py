"""Memory of devices and processes, as it is now. NVML where there are NVIDIA devices, what is granted here for the CPU."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import psutil

from cwa_daemon.protocol import DeviceMemory, Sample
from cwa_engine.base.devices import devices_in
from cwa_engine.machine.cgroups import PROCESSES
from cwa_engine.machine.memory import available_memory

T = TypeVar("T")


def process_memory(pid: int | None) -> int | None:
    """Resident memory of a process in bytes, None where it is gone."""
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def sample(pids: list[int]) -> Sample:
    """The CPU and every visible NVIDIA device now; `pids` are the daemon's own processes."""
    resident = sum(process_memory(pid) or 0 for pid in pids)
    return Sample(time=time.time(), devices=_devices(pids), processes_bytes=resident)


def _private_memory(pid: int) -> int:
    """Memory of a process alone in bytes: without the pages of files, which the system counts as available."""
    try:
        info = psutil.Process(pid).memory_info()
        return int(info.rss - getattr(info, "shared", 0))
    except psutil.Error:
        return 0


def _devices(pids: list[int]) -> list[DeviceMemory]:
    memory = min(
        (available_memory(PROCESSES / str(pid)) for pid in pids or [os.getpid()]), key=attrgetter("free_bytes")
    )
    own = sum(_private_memory(pid) for pid in pids)
    found = [
        DeviceMemory(
            device="cpu",
            total_bytes=memory.total_bytes,
            used_bytes=memory.used_bytes,
            others_bytes=max(0, memory.used_bytes - own) if memory.is_shared else 0,
            utilisation=psutil.cpu_percent() / 100,  # since the last time it was asked
        )
    ]
    for place, gpu in enumerate(_nvidia()):
        others = (
            None if gpu.by_process is None else sum(size for pid, size in gpu.by_process.items() if pid not in pids)
        )
        found.append(
            DeviceMemory(
                device=f"cuda:{place}",
                total_bytes=gpu.total,
                used_bytes=gpu.used,
                others_bytes=others,
                utilisation=gpu.utilisation,
                temperature_c=gpu.temperature,
            )
        )
    return found


def free_bytes(device: str) -> int | None:
    """Free memory of an NVIDIA device, "cuda:0"; None where there is no such device, or nobody tells.

    Of several, "cuda:0+cuda:1", all together.
    """
    each = free_each(device)
    return sum(each) if each else None


def free_each(device: str) -> tuple[int, ...]:
    """Free memory of each NVIDIA device of a name; nothing where there is none such, or nobody tells."""
    found, free = None, []
    for name in devices_in(device):
        kind, _, number = name.partition(":")
        found = found or (_nvidia() if kind == "cuda" else [])
        place = int(number or 0)
        if place >= len(found):
            return ()
        free.append(found[place].total - found[place].used)
    return tuple(free)


def nvidia_devices() -> int:
    """How many NVIDIA devices there are."""
    import pynvml

    return len(_visible(pynvml.nvmlDeviceGetMemoryInfo)) if _has_nvml() else 0


def cpu_share_bytes(lanes: int, pids: list[int]) -> int:
    """What each of so many CPU lanes may have of this machine's memory, beside what others use.

    `pids` are the daemon's own processes: what these hold is shared out as well.
    """
    memory = available_memory()
    if not memory.is_shared:  # of `ulimit`, which leaves each process as much
        return memory.total_bytes
    others = max(0, memory.used_bytes - sum(_private_memory(pid) for pid in pids))
    return (memory.total_bytes - others) // lanes


def free_of_share(share_bytes: int, pid: int | None) -> int:
    """What a CPU lane can still get of its share, whose worker is `pid`."""
    held = _private_memory(pid) if pid else 0
    return max(0, min(available_memory().free_bytes, share_bytes - held))


@dataclass(frozen=True, slots=True)
class _Nvidia:
    """A device as NVML sees it; None for what it does not tell."""

    total: int
    used: int
    by_process: dict[int, int] | None  # process id -> bytes
    utilisation: float | None
    temperature: float | None


@functools.cache
def _has_nvml() -> bool:
    """Whether NVML is there; it stays open, for without a client the driver may begin anew each time it is asked."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver: no NVIDIA devices
        return False
    return True


def _nvidia() -> list[_Nvidia]:
    """The devices that CUDA_VISIBLE_DEVICES shows, in CUDA's numbering; like CUDA, none from the first that is not there."""
    return _visible(_look_at) if _has_nvml() else []


def _visible(look: Callable[[object], T]) -> list[T]:
    """What `look` gives of each of these devices."""
    import pynvml

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = []
    for name in map(str, itertools.count()) if visible is None else visible.split(","):
        try:
            found.append(look(_handle(name.strip())))
        except (pynvml.NVMLError, ValueError):  # no such device, or one that has fallen off the bus
            break
    return found


def _look_at(handle: object) -> _Nvidia:
    import pynvml

    def told(ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except pynvml.NVMLError:  # not every device tells everything
            return None

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    processes = told(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    return _Nvidia(
        total=int(memory.total),
        used=int(memory.used),
        by_process=None if processes is None else {p.pid: int(p.usedGpuMemory or 0) for p in processes},
        utilisation=told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        temperature=told(lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
    )


def _handle(name: str) -> object:
    import pynvml

    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
