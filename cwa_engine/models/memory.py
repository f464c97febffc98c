"""Memory: what gradient statistics need, what a device has left, and what to do when it runs out."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from cwa_engine.evaluation.perplexity import LOGITS
from cwa_engine.machine.memory import Memory, available_memory
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.metrics import Needs

T = TypeVar("T")

# glibc keeps what was freed: 60 MB after SmolLM2-135M was loaded from a GGUF file, 85 MB after its blocks were scored.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def statistics_bytes(loaded: LoadedModel, needs: Needs) -> int:
    """Bytes of g, Fisher diagonals and diag H of all weights in view, in float32."""
    kept = sum(need in needs for need in (Needs.GRADIENT, Needs.FISHER, Needs.TOKEN_FISHER))
    if Needs.HESSIAN in needs:
        kept += 6  # sums of samples, of their squares and of one text; gradients, signs and their product with H
    return 4 * loaded.anatomy.numel * kept


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


def rough_bytes(loaded: LoadedModel, needs: Needs, source: str, tokens: int) -> int:
    """About what scoring takes beside the weights, without trying: more than it does, for most models."""
    blocks = max(1, loaded.anatomy.blocks) if source == "sweep" else 1
    return statistics_bytes(loaded, needs) // blocks + activation_bytes(loaded, tokens) // blocks


def activation_bytes(loaded: LoadedModel, tokens: int) -> int:
    """About what autograd keeps of so many tokens: twice what every matrix reads and writes, and some copies of logits."""
    features = sum(p.in_features + p.out_features for p in loaded.anatomy.parameters.values() if not p.is_vector)
    return 4 * (2 * features * tokens + 4 * LOGITS)


class BatchSize:
    """How many sequences go at once; halved where memory runs out, for all that follows."""

    def __init__(self, size: int, say: Callable[[str], None] = lambda text: None) -> None:
        self.size = size
        self._say = say

    def run(self, work: Callable[[int], T]) -> T:
        """Do work with as many sequences at once as memory allows; what ran out of memory is begun anew."""
        while True:
            try:
                return work(self.size)
            except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if self.size == 1 or not is_out_of_memory(error):
                    raise
            self.size //= 2  # out here the error is gone, and with it all that its frames held
            release()
            self._say(f"out of memory with {2 * self.size} sequences at once: going on with {self.size}")
