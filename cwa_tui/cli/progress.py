"""Progress of a run on standard error: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from cwa_engine.base.events import describe
from cwa_tui import format as fmt

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 2.0  # between two plain lines of progress


class Show(Protocol):
    """Called with each event of a job."""

    def __call__(self, event: dict[str, Any]) -> None: ...


@contextmanager
def progress(console: Console) -> Iterator[Show]:
    """Show a job's events as they come, in the way `console` allows."""
    if console.is_terminal:
        bars = _Bars(console)
        with bars.progress:
            yield bars
    else:
        yield _Lines(console)


class _Lines:
    """A line for each thing that happened, and one for progress every two seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            return  # the command ends with it, and says it with its hint
        line = describe(event)
        if event["kind"] == "progress" and time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            units = "" if event["unit"] == "byte" else f" {event['unit']}s"
            line = f"{event['stage']} {fmt.counted(event['done'], event['total'], event['unit'])}{units}"
        if line:
            self._console.print(line, highlight=False, soft_wrap=True)


class _Bars:
    """A bar for each stage that counts; beside it what is known so far."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # not for plain lines

        self.progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counted]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        match event["kind"]:
            case "progress":
                counted = fmt.counted(event["done"], event["total"], event["unit"])
                self._update(event["stage"], completed=event["done"], total=event["total"], counted=counted)
            case "stage_finished":
                if event["stage"] in self._tasks:
                    self.progress.stop_task(self._tasks[event["stage"]])
            case "topk" if event["weights"] and "score" in self._tasks:
                first = event["weights"][0]
                self._update("score", said=f"{'so far ' if event['partial'] else ''}{first['target']}")
            case "baseline":
                self._update("baseline", said=f"perplexity {event['baseline']['perplexity']:.2f}")
            case "damage":
                point = event["point"]
                end = "collapsed" if point["collapsed_at"] else f"{point['delta_nll']:+.4f} nats"
                self._update("perturb", said=f"k={point['k']} {point['selection']} {end}")
            case "note":
                style = "yellow" if event["level"] == "warning" else "dim"
                self.progress.console.print(event["text"], style=style, highlight=False)
            case "state" if event["state"] == "queued":
                self.progress.console.print("queued", style="dim")

    def _update(self, stage: str, **fields: Any) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self.progress.add_task(stage, total=None, said="", counted="")
        self.progress.update(self._tasks[stage], **fields)
