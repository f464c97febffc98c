"""The number of sequences that go through a model at once. It is halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.memory import release

T = TypeVar("T")


class BatchSize:
    """The current batch size. It is halved when memory runs out, and stays halved."""

    def __init__(self, size: int, say: Callable[[str], None] = lambda text: None) -> None:
        self.size = size
        self._say = say

    def run(self, work: Callable[[int], T]) -> T:
        """Call `work(size)`. If memory runs out, halve the size and call it again from the beginning."""
        while True:
            try:
                return work(self.size)
            except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if self.size == 1 or not is_out_of_memory(error):
                    raise
            self.size //= 2  # outside `except`: the error's frames, and the tensors they hold, are released
            release()
            self._say(f"out of memory with {2 * self.size} sequences at once: going on with {self.size}")
