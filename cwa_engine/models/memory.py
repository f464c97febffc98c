"""Memory: what a device has, what is left of it, and how what is no longer needed is given back."""

from __future__ import annotations

import ctypes
import gc
from typing import TypeVar

import torch

from cwa_engine.machine.memory import Memory, available_memory

T = TypeVar("T")

# glibc keeps what was freed: 60 MB after SmolLM2-135M was loaded from a GGUF file, 85 MB after its blocks were scored.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def device_memory(device: torch.device) -> Memory:
    """What a device has, and what is left of it for this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Memory(str(device), int(total), int(free))
    return available_memory()


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    return device_memory(device).free_bytes


def usual_reserve_bytes(device: torch.device) -> int:
    """What is left free where nobody says how much: 1 GB, or a tenth of what is less than 10 GB."""
    return int(min(1e9, device_memory(device).total_bytes / 10))


def release() -> None:
    """Give back what nothing refers to any more, to the system and the device as well."""
    gc.collect()
    if _trim:
        _trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
