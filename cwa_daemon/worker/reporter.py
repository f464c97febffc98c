"""What a run says on its way: its events, sent to the daemon, and the lines of its log."""

from __future__ import annotations

import time

from cwa_daemon.pipe.messages import EventReport
from cwa_daemon.worker.channels import Cancels, Reports
from cwa_engine.base import events
from cwa_engine.base.errors import Cancelled

PROGRESS_INTERVAL_S = 0.2  # no follower hears of it more often


class RunReporter:
    """The `emit` of one run: sends events on, keeps the log's lines, and ends the run where it was cancelled."""

    def __init__(self, run_id: str, inbox: Cancels, outbox: Reports) -> None:
        self.run_id = run_id
        self.log: list[str] = []
        self._inbox = inbox
        self._outbox = outbox
        self._last_progress = ("", 0.0)

    def __call__(self, event: events.Event) -> None:
        self.check_cancelled()
        if isinstance(event, events.Progress) and not self._is_due(event):
            return
        body = events.to_dict(event)
        if line := events.log_line(body):
            self.log.append(line)
        self._outbox.send(EventReport(run_id=self.run_id, event=body))

    def note(self, text: str, level: str = "info") -> None:
        self(events.Note(text, level))

    def check_cancelled(self) -> None:
        """Raises Cancelled where the run is not wanted any more."""
        if self._inbox.is_cancelled(self.run_id):
            raise Cancelled("the run was cancelled")

    def _is_due(self, progress: events.Progress) -> bool:
        stage, last = self._last_progress
        now = time.monotonic()
        if stage == progress.stage and progress.done < progress.total and now - last < PROGRESS_INTERVAL_S:
            return False
        self._last_progress = (progress.stage, now)
        return True
