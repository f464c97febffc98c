"""Memory: what gradient statistics need, what a device has left, and what to do when it runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

from cwa_engine.evaluation.perplexity import LOGITS
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.metrics import Needs

T = TypeVar("T")


def statistics_bytes(loaded: LoadedModel, needs: Needs) -> int:
    """Bytes of g, Fisher diagonals and diag H of all weights in view, in float32."""
    kept = sum(need in needs for need in (Needs.GRADIENT, Needs.FISHER, Needs.TOKEN_FISHER))
    if Needs.HESSIAN in needs:
        kept += 6  # sums of samples, of their squares and of one text; gradients, signs and their product with H
    return 4 * loaded.anatomy.numel * kept


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def release() -> None:
    """Give back what nothing refers to any more, to the device as well."""
    gc.collect()
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
