"""A runner that computes nothing: it remembers what it was asked, and its runs end as the test says."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cwa_engine.base.errors import Cancelled, NotFound, QueueFull, RunFailed
from cwa_engine.base.events import Event, Note
from cwa_engine.records.run_report import RunReport
from cwa_engine.runner import RunHandle, RunState, RunStateName
from cwa_engine.spec import RunSpec
from tests.engine.study_runs import planted_run


@dataclass
class FakeRun:
    runner: FakeRunner
    run_id: str
    spec: RunSpec
    name: RunStateName = "queued"
    created: float = field(default_factory=time.time)
    wrong: tuple[str, ...] = ()  # files that are altered

    def events(self) -> Iterator[Event]:
        """Its end is what it says."""
        if self.name == "queued":
            failed = self.spec.model in self.runner.failing
            self.name = "failed" if failed else "done"
        yield Note("done")

    def state(self) -> RunState:
        error = {"failed": RunFailed("it has no weights"), "cancelled": Cancelled("cancelled")}.get(self.name)
        return RunState(self.name, self.created, error)

    def report(self) -> RunReport:
        return planted_run(self.spec.model)

    def altered(self) -> tuple[str, ...]:
        return self.wrong

    def cancel(self) -> None:
        self.name = "cancelled"


@dataclass
class FakeRunner:
    """`room` runs wait at most. Runs of models in `failing` fail."""

    room: int = 1000
    failing: set[str] = field(default_factory=set)
    elsewhere: bool = False
    where: str = ""
    runs: dict[str, FakeRun] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # models, in the order in which runs were made
    waits: int = 0  # for room
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        assert key is not None and 8 <= len(key) <= 64
        if key in self.keys:
            return self.runs[self.keys[key]]
        if sum(run.name == "queued" for run in self.runs.values()) >= self.room:
            raise QueueFull("no room")
        run = FakeRun(self, f"run-{next(self._numbers)}", spec)
        self.runs[run.run_id], self.keys[key] = run, run.run_id
        self.asked.append(spec.model)
        return run

    def attach(self, run_id: str) -> RunHandle:
        if run_id not in self.runs:
            raise NotFound(f"there is no run {run_id}")
        return self.runs[run_id]

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        return {run_id: self.runs[run_id].state() for run_id in run_ids if run_id in self.runs}

    def wait_for_room(self) -> None:
        self.waits += 1
        list(next(run for run in self.runs.values() if run.name == "queued").events())

    @property
    def times(self) -> set[int]:
        """How often each spec was made into a run."""
        return set(Counter(run.spec.sha256() for run in self.runs.values()).values())
