"""What an executor needs of whoever gives it commands: somewhere to report, and word of what was cancelled."""

from __future__ import annotations

from typing import Protocol

from cwa_daemon.pipe.messages import Report


class Reports(Protocol):
    """Takes reports, in their order. `outbox.Outbox` sends them to a daemon."""

    def send(self, report: Report) -> None: ...


class Cancels(Protocol):
    """Knows which runs were cancelled. `inbox.Inbox` hears of them from a daemon."""

    def is_cancelled(self, run_id: str) -> bool: ...

    def wait_for_cancel(self, run_id: str, timeout_s: float) -> bool:
        """Wait, at most so long, for the run to be cancelled; whether it was."""
