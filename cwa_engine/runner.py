"""The interface through which more than one run is asked for: whoever has specs hands them to a runner. torch-free.

with LocalRunner() as runner:
    handles = [runner.submit(spec) for spec in specs]
    reports = [handle.report() for handle in handles]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from cwa_engine.base.errors import NotFound

if TYPE_CHECKING:
    from cwa_engine.base.errors import CwaError
    from cwa_engine.base.events import Event
    from cwa_engine.records.run_report import RunReport
    from cwa_engine.spec import RunSpec

RunStateName = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run is. `error` is that of one that failed or was cancelled."""

    name: RunStateName
    created: float  # when it was asked for, in seconds since the epoch
    error: CwaError | None = None

    @property
    def ended(self) -> bool:
        return self.name in ("done", "failed", "cancelled")


class RunHandle(Protocol):
    """A run that was asked for."""

    @property
    def run_id(self) -> str: ...

    def events(self) -> Iterator[Event]:
        """What the run says from its beginning on, as it comes, until it has ended in whatever way. Each call begins anew."""

    def state(self) -> RunState:
        """Where the run is now."""

    def report(self) -> RunReport:
        """Wait for the end of the run, and give what it found. Raises the error that ended it, Cancelled among them."""

    def altered(self) -> tuple[str, ...]:
        """Names of files of a finished run that are not what it wrote. Raises NotFound where its files are gone."""

    def cancel(self) -> None:
        """End the run before its next step; one that has ended stays as it is. `report` then raises Cancelled."""


class Runner(Protocol):
    """Takes specs and runs them."""

    @property
    def where(self) -> str:
        """Where its runs are kept, so that another process finds them: empty for the daemon of this machine."""

    @property
    def elsewhere(self) -> bool:
        """Whether runs are on another machine, with its own models and code."""

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        """Ask for a run; gives a handle at once. Raises what can be refused without a model.

        The same key never runs twice: it gives the run that was asked for under it, however that ended. A key stands for
        all that the run depends on; it has 8 to 64 characters.
        """

    def attach(self, run_id: str) -> RunHandle:
        """A run that was asked for earlier, perhaps by another process. Raises NotFound where there is none."""

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        """Where these runs are; those that are not there any more are left out."""

    def wait_for_room(self) -> None:
        """After QueueFull: wait until another run may be asked for."""


def states_of(run_ids: Sequence[str], state_of: Callable[[str], RunState]) -> Mapping[str, RunState]:
    """Where these runs are, asked one by one; those of which `state_of` raises NotFound are left out."""
    found = {}
    for run_id in run_ids:
        try:
            found[run_id] = state_of(run_id)
        except NotFound:
            continue
    return found
