"""Progress of a run on standard error: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from cwa_engine.base.events import BaselineMeasured, DamageMeasured, Note, Progress, StageFinished, TopK
from cwa_tui.store.events import JobEvent, StateChanged
from cwa_tui.text import format as fmt

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 2.0  # between two plain lines of progress


class Show(Protocol):
    """Called with each event of a job."""

    def __call__(self, event: JobEvent) -> None: ...


@contextmanager
def progress(console: Console, only_notes: bool = False) -> Iterator[Show]:
    """Show a job's events as they come: as bars on a terminal, else as lines; or the lines of its notes alone."""
    if only_notes:
        lines = _Lines(console)
        yield lambda event: lines(event) if isinstance(event.what, Note) else None
    elif console.is_terminal:
        bars = _Bars(console)
        with bars.bars:
            yield bars
    else:
        yield _Lines(console)


class _Lines:
    """A line for each event, and one for progress every two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def __call__(self, event: JobEvent) -> None:
        if event.error:
            return  # the command ends with this error, and prints it with its hint
        line, at = event.line, event.what
        if isinstance(at, Progress) and time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            units = "" if at.unit == "byte" else f" {at.unit}s"
            line = f"{at.stage} {fmt.counted(at.done, at.total, at.unit)}{units}"
        if line:
            self._console.print(line, highlight=False, soft_wrap=True)


class _Bars:
    """A bar for each stage that counts, with the latest finding beside it."""

    def __init__(self, console: Console) -> None:
        from rich import progress  # plain lines need none of it

        self.bars = progress.Progress(
            progress.TextColumn("{task.description:<8}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[counted]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[said]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: JobEvent) -> None:
        match event.what:
            case Progress(stage, done, total, unit):
                self._update(stage, completed=done, total=total, counted=fmt.counted(done, total, unit))
            case StageFinished(stage):
                if stage in self._tasks:
                    self.bars.stop_task(self._tasks[stage])
            case TopK(partial=partial, weights=(first, *_)) if "score" in self._tasks:
                self._update("score", said=f"{'so far ' if partial else ''}{first.target}")
            case BaselineMeasured(baseline):
                self._update("baseline", said=f"perplexity {fmt.perplexity(baseline.perplexity)}")
            case DamageMeasured(point):
                end = "collapsed" if point.collapsed_at else f"{fmt.delta(point.delta_nll)} nats"
                self._update("perturb", said=f"k={point.k} {point.selection} {end}")
            case Note(text, level):
                self._print(text, "yellow" if level == "warning" else "dim")
            case StateChanged(state="queued"):
                self._print("queued", "dim")

    def _print(self, text: str, style: str) -> None:
        self.bars.console.print(text, style=style, highlight=False)

    def _update(self, stage: str, **fields: Any) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self.bars.add_task(stage, total=None, said="", counted="")
        self.bars.update(self._tasks[stage], **fields)
