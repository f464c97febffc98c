"""`--track`: tell a tracker of runs that have ended. Where it fails, that is said, and the command goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import CwaError, DaemonUnreachable, TrackingFailed
from cwa_tui.cli.output import say

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.records.run_report import RunReport
    from cwa_engine.tracking.tracker import Tracker

Track = Annotated[
    str | None,
    typer.Option(
        help="Tell trackio or wandb of the run when it has ended; off unless given.",
        metavar="TRACKER[:PROJECT]",
        envvar="CWTOOL_TRACK",
        show_envvar=True,
    ),
]


def tracker_of(text: str | None, detach: bool) -> Tracker | None:
    """What --track says. Raises InvalidInput, before anything runs, for a tracker that is not there."""
    if not text:
        return None
    from cwa_engine.tracking.tracker import tracker_typed

    tracker = tracker_typed(text)
    if tracker and detach:
        say(f"{tracker.library} will not be told: with --detach nobody here waits for the end")
        return None
    return tracker


def track_run(client: Client, run_id: str, tracker: Tracker) -> None:
    """Tell a tracker of a run of the daemon."""
    from cwa_tui.cli.sources import opened_run

    try:
        with opened_run(client, run_id) as report:
            track_runs([report], tracker)
    except DaemonUnreachable:
        raise
    except CwaError as error:  # files that are altered: showing the result says so
        say(f"warning: {tracker.library} was not told of {run_id}: {error.message}")


def track_runs(reports: Iterable[RunReport], tracker: Tracker, study: str = "") -> None:
    """Tell a tracker of these runs. One that fails is named in a warning; nothing is lost by it."""
    from cwa_engine.tracking.tracker import track

    for report in reports:
        try:
            track(report, tracker, study)
        except TrackingFailed as error:
            say(f"warning: {error.message}; {error.hint}")
