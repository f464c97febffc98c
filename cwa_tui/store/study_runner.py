"""A runner that knows what the session was told of runs, so that the daemon need not be asked for each of them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cwa_daemon.protocol import JobView
from cwa_engine.base.errors import Cancelled
from cwa_engine.runner import RunHandle, Runner, RunState
from cwa_engine.spec import RunSpec


@dataclass
class RunnerOfStudies:
    """The session's `runner`, with what is known: it waits for answers, so it is for threads beside the loop.

    `active` are the runs that wait or run, as they were listed a moment ago.
    """

    runner: Runner
    active: Mapping[str, JobView] = field(default_factory=dict)
    ended: dict[str, RunState] = field(default_factory=dict)
    stopped: bool = False  # nothing is submitted any more

    @property
    def where(self) -> str:
        return self.runner.where

    @property
    def elsewhere(self) -> bool:
        return self.runner.elsewhere

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        if self.stopped:
            raise Cancelled("the study was cancelled")
        return self.runner.submit(spec, key)

    def attach(self, run_id: str) -> RunHandle:
        return self.runner.attach(run_id)

    def wait_for_room(self) -> None:
        self.runner.wait_for_room()

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        """Only those that have ended since the last look are asked for."""
        active = {run_id: _state_of(self.active[run_id]) for run_id in run_ids if run_id in self.active}
        known = active | {run_id: self.ended[run_id] for run_id in run_ids if run_id in self.ended}
        asked = self.runner.states([run_id for run_id in run_ids if run_id not in known])
        self.ended |= {run_id: state for run_id, state in asked.items() if state.ended}
        return {**known, **asked}


def _state_of(job: JobView) -> RunState:
    """Of a run that waits or runs."""
    return RunState("running" if job.state == "running" else "queued", job.created)
