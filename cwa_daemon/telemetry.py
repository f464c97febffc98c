"""Memory of devices and processes, as it is now. NVML where there are NVIDIA devices, the machine's memory for the CPU."""

from __future__ import annotations

import os

import psutil

from cwa_daemon.protocol import DeviceMemory


def process_memory(pid: int | None) -> int | None:
    """Resident memory of a process in bytes, None where it is gone."""
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def devices() -> list[DeviceMemory]:
    """The CPU and every visible NVIDIA device with their memory."""
    memory = psutil.virtual_memory()
    found = [DeviceMemory(device="cpu", total_bytes=memory.total, used_bytes=memory.total - memory.available)]
    for place, (total, used) in enumerate(_nvidia_memory()):
        found.append(DeviceMemory(device=f"cuda:{place}", total_bytes=total, used_bytes=used))
    return found


def default_device() -> str:
    """Where a run with device "auto" goes: the NVIDIA device with most free memory, else the CPU."""
    free = [total - used for total, used in _nvidia_memory()]
    return f"cuda:{free.index(max(free))}" if free else "cpu"


def _nvidia_memory() -> list[tuple[int, int]]:
    """(total, used) bytes of the devices that CUDA_VISIBLE_DEVICES shows, in CUDA's numbering."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver: no NVIDIA devices
        return []
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        else:
            handles = [_handle(name.strip()) for name in visible.split(",") if name.strip() not in ("", "-1")]
        memories = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        return [(int(memory.total), int(memory.used)) for memory in memories]
    finally:
        pynvml.nvmlShutdown()


def _handle(name: str) -> object:
    import pynvml

    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
