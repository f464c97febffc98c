"""How many sequences go through a model at once, and what happens where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.memory import release

T = TypeVar("T")


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
