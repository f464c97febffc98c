"""Follow a run from its first event to its result. Ctrl-C leaves it, and it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from cwa_daemon.client import Client, Result
from cwa_engine.base.errors import DaemonUnreachable, NotFound, RunFailed, VersionMismatch
from cwa_engine.base.events import Planned
from cwa_engine.records.checksums import Check, altered_error
from cwa_tui.cli.output import say, show, show_error, stderr
from cwa_tui.cli.progress import progress
from cwa_tui.store.events import StateChanged, read_job_event

if TYPE_CHECKING:
    from cwa_engine.records.run_summary import RunSummary
    from cwa_engine.rows import Plan


def follow(
    client: Client, run_id: str, cancel_on_interrupt: bool = False, quiet: bool = False, only_notes: bool = False
) -> None:
    """Show a job until it is done and copied, and raise its error. Ctrl-C leaves it, or cancels it if asked for.

    `only_notes` shows what it waits for and what is notable, and no progress.
    """
    seen = 0
    try:
        with progress(stderr(quiet), only_notes) as show_event:
            for plain in client.follow(run_id):
                event = read_job_event(plain)
                seen = event.seq
                show_event(event)
    except DaemonUnreachable as error:
        again = f"{_cwtool(client)} logs -f {run_id}"
        raise type(error)(error.message, hint=f"{run_id} is not lost: `{again}` goes on following it") from error
    except KeyboardInterrupt:
        if not cancel_on_interrupt:
            _leave(client, run_id)
        say("cancelling ...")
        client.cancel(run_id)
        event = read_job_event(list(client.follow(run_id, after_seq=seen))[-1])
    if event.error:
        raise event.error
    if isinstance(event.what, StateChanged) and event.what.state != "done":
        raise RunFailed(f"{run_id} is {event.what.state}")


def planned(client: Client, run_id: str) -> Plan:
    """The plan that a job made, when it is done. Raises its error."""
    follow(client, run_id, cancel_on_interrupt=True, only_notes=True)
    events = (read_job_event(plain).what for plain in client.follow(run_id))
    return next(event.plan for event in events if isinstance(event, Planned))


def show_result(client: Client, run_id: str, as_json: bool, output: Path | None = None) -> None:
    """The report of a finished run, or its summary as JSON. Exit code 1 if one of its files is altered.

    Raises Altered if the summary itself is.
    """
    from cwa_tui.cli.report import run_report  # here, so that the progress of a run does not wait for it

    result = client.result(run_id)
    check = _checked(client, result.summary["run_id"])
    job = client.job(result.summary["run_id"])
    if as_json:
        elsewhere = {"host": client.host, "output": output and str(output)} if client.host else {}
        state = {"fingerprint": check.fingerprint, "altered": check.altered} if check else {}
        marks = {"tags": job.tags, "note": job.note}
        show({**result.summary, "folder": str(result.folder), **marks, **state, **elsewhere})
    else:
        files = f"{client.host}:{result.folder}" if client.host else str(result.folder)
        files = f"{files} and {output}" if output else files
        show(run_report(_summary(result), files, check.fingerprint if check else None))
        for name, written in (("tags", " ".join(job.tags)), ("note", job.note)):
            if written:
                show(f"{name}: {written}")
        if not result.summary["damage"] and not result.summary["ablation"]:
            say("no damage was measured; run without --no-perturbation to measure what these weights matter")
    if check and check.unchecked:
        say(f"{', '.join(check.unchecked)} cannot be checked: an earlier version of cwtool wrote no hash of it")
    if check and check.altered:
        show_error(altered_error(result.summary["run_id"], check.altered), as_json=False)
        raise typer.Exit(1)


def _checked(client: Client, run_id: str) -> Check | None:
    """Whether the files of a run are as it wrote them; None, with a message, if the daemon is too old to check them."""
    try:
        return client.check(run_id).check
    except VersionMismatch as error:
        say(error.message)
        return None


def _cwtool(client: Client) -> str:
    return f"cwtool --host {client.host}" if client.host else "cwtool"


def _leave(client: Client, run_id: str) -> NoReturn:
    cwtool = _cwtool(client)
    say(f"\n{run_id} goes on.")
    say(f"  to follow it:  {cwtool} logs -f {run_id}")
    say(f"  to cancel it:  {cwtool} jobs cancel {run_id}")
    if client.host:
        say(f"  its files:     {cwtool} results fetch {run_id} --output FOLDER, when it is done")
    raise typer.Exit(130)


def _summary(result: Result) -> RunSummary:
    """The summary of a run as its type. Raises NotFound if it cannot be read."""
    from cwa_engine.records.run_summary import summary_from_plain

    try:
        return summary_from_plain(result.summary)
    except ValueError as error:
        raise NotFound(f"the summary of {result.folder.name} cannot be read: {error}", hint="run it again") from error
