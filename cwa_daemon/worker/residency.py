"""Which models stay warm: as many as the budget holds, the least recently used goes first, pinned ones stay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from cwa_engine.base.errors import DoesNotFit
from cwa_engine.base.plain import JsonMap

M = TypeVar("M")


class ModelKey(NamedTuple):
    """The same model in another dtype or revision, placed otherwise, with changed files or of another Hub, is another entry."""

    location: str
    revision: str | None
    dtype: str
    offload: str
    fingerprint: str
    hub: str = ""  # the cache it comes from, and the Hub that filled it; empty for local files


@dataclass
class Resident(Generic[M]):
    """A warm model. Times are seconds since the epoch."""

    key: ModelKey
    name: str  # as the user wrote it
    model: M
    size_bytes: int = 0
    keep_alive_s: float = math.inf
    pinned: bool = False
    loaded: float = field(default_factory=time.time)
    last_used: float = field(default_factory=time.time)
    jobs_served: int = 0
    checksum: object = None  # of the weights as they were loaded
    suspect: bool = False  # the last run on it did not end well: its weights are compared before the next
    access: JsonMap = field(default_factory=dict)  # how its files were reached

    @property
    def expires(self) -> float:
        """When it is to be unloaded, if nobody uses it before; `math.inf` for never."""
        return math.inf if self.pinned else self.last_used + self.keep_alive_s


class Residency(Generic[M]):
    """The warm models of one worker, least recently used first."""

    def __init__(self) -> None:
        self._residents: dict[ModelKey, Resident[M]] = {}

    def __iter__(self) -> Iterator[Resident[M]]:
        return iter(self._residents.values())

    @property
    def size_bytes(self) -> int:
        return sum(resident.size_bytes for resident in self)

    def use(self, key: ModelKey) -> Resident[M] | None:
        """The warm model, now the most recently used one, or None."""
        resident = self._residents.pop(key, None)
        if resident:
            resident.last_used = time.time()
            self._residents[key] = resident
        return resident

    def add(self, resident: Resident[M]) -> None:
        self._residents[resident.key] = resident

    def make_room(
        self, name: str, needed_bytes: int, budget_bytes: float, free_bytes: Callable[[], int]
    ) -> list[Resident[M]]:
        """Drop models until `needed_bytes` more are within the budget and free; give the dropped ones' records.

        Nothing is dropped in vain: raises DoesNotFit, with the numbers, where dropping all that may go would not do.
        """
        going = [resident for resident in self if not resident.pinned]
        could_free = sum(resident.size_bytes for resident in going)

        def room() -> float:
            return min(free_bytes(), budget_bytes - self.size_bytes)

        if needed_bytes > room() + could_free:
            raise self._does_not_fit(name, needed_bytes, budget_bytes, free_bytes())
        dropped = []
        while going and needed_bytes > room():
            dropped.append(going.pop(0))
            self.remove(dropped[-1])
        if needed_bytes > room():  # others took it in the meantime
            raise self._does_not_fit(name, needed_bytes, budget_bytes, free_bytes())
        return dropped

    def _does_not_fit(self, name: str, needed_bytes: int, budget_bytes: float, free_bytes: int) -> DoesNotFit:
        pinned = [f"{resident.name} ({_gb(resident.size_bytes)}, pinned)" for resident in self if resident.pinned]
        budget = "" if math.isinf(budget_bytes) else f", the budget is {_gb(budget_bytes)}"
        hint = "try --dtype bfloat16, --offload cpu or --wait-for-memory; `cwtool ps` shows who uses memory"
        if pinned:
            hint = f"`cwtool unload` could free {', '.join(pinned)}; or {hint}"
        warm = _gb(self.size_bytes)
        return DoesNotFit(
            f"{name} does not fit: it needs {_gb(needed_bytes)}, {_gb(free_bytes)} are free{budget}, "
            f"warm models hold {warm}",
            hint=hint,
        )

    def remove(self, resident: Resident[M]) -> None:
        del self._residents[resident.key]
        resident.model = None  # type: ignore[assignment]  # its memory must be free before that is measured

    def expire(self, now: float) -> list[Resident[M]]:
        """Drop what has not been used for longer than it was to be kept."""
        expired = [resident for resident in self if resident.expires <= now]
        for resident in expired:
            self.remove(resident)
        return expired

    @property
    def next_expiry(self) -> float:
        """When the next model is to go, seconds since the epoch; `math.inf` for never."""
        return min((resident.expires for resident in self), default=math.inf)

    def drop(self, names: set[str]) -> list[Resident[M]]:
        """Drop every entry whose name or location is among `names`, pinned or not."""
        dropped = [r for r in self if names & {r.name, r.key.location}]
        for resident in dropped:
            self.remove(resident)
        return dropped


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
