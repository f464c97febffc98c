"""Memory of devices: how much there is, how much is free, and releasing what is no longer used."""

from __future__ import annotations

import ctypes
import gc
import platform

import torch

from cwa_engine.machine.memory import Memory, available_memory

# glibc keeps freed memory: 60 MB after loading SmolLM2-135M from a GGUF file, 85 MB after scoring its blocks.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def device_memory(device: torch.device) -> Memory:
    """The memory of a device, and how much of it this process can still get."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # What torch holds without using it is free for this process, though not for others.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(str(device), int(total), int(free + unused))
    return available_memory()


def device_name(device: torch.device) -> str:
    """What its maker calls a device, "NVIDIA H100 80GB HBM3"; of a CPU what the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still get on a device."""
    return device_memory(device).free_bytes


def usual_reserve_bytes(device: torch.device) -> int:
    """Bytes to leave free by default: 1 GB, or a tenth of a device with less than 10 GB."""
    return int(min(1e9, device_memory(device).total_bytes / 10))


def release() -> None:
    """Release unreferenced memory, to the system and to the device."""
    gc.collect()
    if _trim:
        _trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
