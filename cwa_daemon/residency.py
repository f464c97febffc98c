"""Which models stay warm: as many as memory holds; when room is needed, the least recently used goes first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

M = TypeVar("M")


class ModelKey(NamedTuple):
    """The same model in another dtype or revision, placed otherwise, or with changed files, is another entry."""

    location: str
    revision: str | None
    dtype: str
    offload: str
    fingerprint: str


@dataclass
class Resident(Generic[M]):
    """A warm model. Times are seconds since the epoch."""

    key: ModelKey
    name: str  # as the user wrote it
    model: M
    loaded: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.time)
    jobs_served: int = 0


class Residency(Generic[M]):
    """The warm models of one worker, least recently used first."""

    def __init__(self) -> None:
        self._residents: dict[ModelKey, Resident[M]] = {}

    def __iter__(self) -> Iterator[Resident[M]]:
        return iter(self._residents.values())

    def use(self, key: ModelKey) -> Resident[M] | None:
        """The warm model, now the most recently used one, or None."""
        resident = self._residents.pop(key, None)
        if resident:
            resident.last_used = time.time()
            self._residents[key] = resident
        return resident

    def add(self, resident: Resident[M]) -> None:
        self._residents[resident.key] = resident

    def make_room(self, needed_bytes: int, free_bytes: Callable[[], int]) -> list[Resident[M]]:
        """Drop models until `free_bytes()` reaches what is needed or none is left; give the dropped ones' records."""
        dropped = []
        while self._residents and free_bytes() < needed_bytes:
            dropped.append(self._residents.pop(next(iter(self._residents))))
            dropped[-1].model = None  # type: ignore[assignment]  # the memory must be free before it is measured again
        return dropped

    def drop(self, names: set[str]) -> list[Resident[M]]:
        """Drop every entry whose name or location is among `names`."""
        dropped = [r for r in self._residents.values() if names & {r.name, r.key.location}]
        for resident in dropped:
            del self._residents[resident.key]
        return dropped
