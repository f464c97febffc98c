"""The interface through which more than one run is asked for: whoever has specs hands them to a runner. torch-free.

with LocalRunner() as runner:
    handles = [runner.submit(spec) for spec in specs]
    reports = [handle.report() for handle in handles]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cwa_engine.base.events import Event
    from cwa_engine.records.run_report import RunReport
    from cwa_engine.spec import RunSpec


class RunHandle(Protocol):
    """A run that was asked for."""

    @property
    def run_id(self) -> str: ...

    def events(self) -> Iterator[Event]:
        """What the run says from its beginning on, as it comes, until it has ended in whatever way. Each call begins anew."""

    def report(self) -> RunReport:
        """Wait for the end of the run, and give what it found. Raises the error that ended it, Cancelled among them."""

    def cancel(self) -> None:
        """End the run before its next step; one that has ended stays as it is. `report` then raises Cancelled."""


class Runner(Protocol):
    """Takes specs and runs them."""

    def submit(self, spec: RunSpec) -> RunHandle:
        """Ask for a run; gives a handle at once. Raises what can be refused without a model."""
