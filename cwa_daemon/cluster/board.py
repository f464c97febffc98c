"""Runs that wait for a slot, and what each slot does and has warm. Threads of slots meet here. Knows nothing of Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from cwa_daemon.cluster.scheduling import ModelName, Waiting, next_run
from cwa_daemon.pipe.messages import RunJob
from cwa_engine.base.errors import CwaError
from cwa_engine.spec import RunSpec

REMEMBERED = 8  # models that a slot counts as warm; its actor knows better, and loads what it has not


@dataclass
class Queued:
    """A run that waits or is under way."""

    command: RunJob
    spec: RunSpec
    deaths: list[str] = field(default_factory=list)  # of actors under it
    cancelled: bool = False

    @property
    def run_id(self) -> str:
        return self.command.run_id


class Board:
    """What waits, in the order of asking, and what `count` slots are at."""

    def __init__(self, count: int) -> None:
        self.changed = threading.Condition()  # guards all below
        self.closed = False
        self._count = count
        self._usable: set[int] = set()
        self._refused: dict[int, CwaError] = {}
        self._waiting: dict[str, Queued] = {}
        self._running: dict[int, Queued] = {}
        self._warm: dict[int, list[ModelName]] = {}

    # runs

    def add(self, run: Queued, first: bool = False) -> CwaError | None:
        """Let a run wait. Gives the reason where no slot is left that could take it."""
        with self.changed:
            if self.no_slot_left:
                return self.refusals[-1]
            self._waiting = {run.run_id: run, **self._waiting} if first else {**self._waiting, run.run_id: run}
            self.changed.notify_all()
            return None

    def take(self, slot: int) -> Queued | None:
        """The run that a slot begins now; waits for one. None once all is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self._waiting)
            if self.closed:
                return None
            waiting = [Waiting(run.run_id, ModelName.of(run.spec)) for run in self._waiting.values()]
            others = {number: warm for number, warm in self._warm.items() if number != slot}
            found = next_run(waiting, self._warm.get(slot, ()), others)
            assert found
            self._warm[slot] = [*(m for m in self._warm.get(slot, ()) if m != found.model), found.model][-REMEMBERED:]
            self._running[slot] = self._waiting.pop(found.run_id)
            return self._running[slot]

    def free(self, slot: int, cold: bool) -> None:
        """A slot has done with its run. `cold`: its models are gone."""
        with self.changed:
            self._running.pop(slot, None)
            if cold:
                self._warm.pop(slot, None)

    def cancel(self, run_id: str) -> bool:
        """Take a run that waits away; one that is under way is marked. Whether it waited."""
        with self.changed:
            if self._waiting.pop(run_id, None):
                return True
            for run in self._running.values():
                run.cancelled |= run.run_id == run_id
            return False

    # slots

    def use(self, slot: int) -> None:
        """A slot can be used."""
        with self.changed:
            self._usable.add(slot)
            self.changed.notify_all()

    def refuse(self, slot: int, error: CwaError) -> list[Queued]:
        """A slot cannot be used, now or ever. Gives the runs that waited, where it was the last one."""
        with self.changed:
            self._usable.discard(slot)
            self._warm.pop(slot, None)
            self._refused[slot] = error
            stranded = list(self._waiting.values()) if self.no_slot_left else []
            for run in stranded:
                del self._waiting[run.run_id]
            self.changed.notify_all()
            return stranded

    @property
    def usable(self) -> frozenset[int]:
        with self.changed:
            return frozenset(self._usable)

    @property
    def any_usable(self) -> bool:
        return bool(self._usable)

    @property
    def no_slot_left(self) -> bool:
        return len(self._refused) == self._count

    @property
    def refusals(self) -> Sequence[CwaError]:
        return list(self._refused.values())

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Wait, unless all is over."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed, seconds)
