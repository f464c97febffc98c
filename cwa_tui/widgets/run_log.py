"""What the selected run said."""

from __future__ import annotations

import time

from rich.text import Text
from textual.widgets import RichLog

from cwa_tui.state import MOST_LOG_LINES, LogLine, RunState

_STYLES = {"warning": "yellow", "error": "red"}


class RunLog(RichLog):
    """Grows with the run; scrolled up, it stays where it is."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id, max_lines=MOST_LOG_LINES, wrap=True, markup=False, highlight=False, min_width=0)
        self.border_title = "log"
        self._run_id: str | None = None
        self._written = 0

    def show_run(self, run: RunState | None) -> None:
        if run is None or run.run_id != self._run_id:
            self.clear()
            self._run_id, self._written = run.run_id if run else None, 0
        if run is None:
            return
        fresh = run.said - self._written
        for line in list(run.lines)[-fresh:] if fresh else []:
            self.write(_written(line), scroll_end=self.is_vertical_scroll_end)
        self._written = run.said


def _written(line: LogLine) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(line.time))
    return Text.assemble((f"{clock} ", "dim"), (line.text, _STYLES.get(line.level, "")))
