"""The log of the selected run."""

from __future__ import annotations

import time

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from cwa_tui.store.followed_run import FollowedRun, LogLine
from cwa_tui.text.visible import visible
from cwa_tui.widgets.pause import Pause

PAUSE_S = 2.0  # between two drawings: each has the screen laid out again
_STYLES = {"warning": "yellow", "error": "red"}


class RunLog(VerticalScroll):
    """Grows with the run; scrolled up, it stays where it is until it is scrolled to its end again."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.border_title = "log"
        self._drawn: tuple[str, int] | None = None  # run id and how many lines it had written
        self._at_end = True
        self._run: FollowedRun | None = None
        self._pause = Pause(self, PAUSE_S, self._draw)

    def compose(self) -> ComposeResult:
        yield Static(id="log-text")

    def on_show(self) -> None:
        self._draw()
        if self._at_end:
            self.scroll_end(animate=False)

    def show_run(self, run: FollowedRun | None) -> None:
        """Show the log of a run: of another one at once, of the same one after a pause."""
        before, self._run = self._run, run
        if run and before and run.run_id == before.run_id and not run.status.ended:
            self._pause.ask()
        else:
            self._draw()

    def _draw(self) -> None:
        """A hidden pane waits until it is shown."""
        if not self.display:
            return
        run = self._run
        now = (run.run_id, run.log.written) if run else None
        if now == self._drawn:
            return
        other = run is None or self._drawn is None or self._drawn[0] != run.run_id
        if self.size.height:  # a hidden pane has no position; the last one counts
            self._at_end = other or self.is_vertical_scroll_end
        self._drawn = now
        lines = [_line(line) for line in run.log.lines] if run else []
        self.query_one("#log-text", Static).update(Text("\n").join(lines))
        if self._at_end:
            self.scroll_end(animate=False)


def _line(line: LogLine) -> Text:
    clock = time.strftime("%H:%M:%S", time.localtime(line.time))
    return Text.assemble((f"{clock} ", "dim"), (visible(line.text), _STYLES.get(line.level, "")))
