"""Stay with a run from its first event to its result, or leave it at Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import typer

from cwa_daemon.client import Client
from cwa_engine.base.errors import DaemonUnreachable, RunFailed, VersionMismatch, error_from_dict
from cwa_engine.records.checksums import Check, altered_error
from cwa_tui.cli.output import say, show, show_error, stderr
from cwa_tui.cli.progress import progress


def follow(client: Client, run_id: str, cancel_on_interrupt: bool = False, quiet: bool = False) -> None:
    """Show a job until it is done and copied. Raises its error; at Ctrl-C leaves it, or cancels it where that was asked."""
    seen = 0
    try:
        with progress(stderr(quiet)) as show_event:
            for event in client.follow(run_id):
                seen = event["seq"]
                show_event(event)
    except DaemonUnreachable as error:
        again = f"{_cwtool(client)} logs -f {run_id}"
        raise type(error)(error.message, hint=f"{run_id} is not lost: `{again}` follows it on") from error
    except KeyboardInterrupt:
        if not cancel_on_interrupt:
            _leave(client, run_id)
        say("cancelling ...")
        client.cancel(run_id)
        event = list(client.follow(run_id, after_seq=seen))[-1]
    if event["error"]:
        raise error_from_dict(event["error"])
    if event["kind"] == "state" and event["state"] != "done":
        raise RunFailed(f"{run_id} is {event['state']}")


def planned(client: Client, run_id: str) -> dict[str, Any]:
    """The plan that a job made, when it is done. Raises its error."""
    follow(client, run_id, cancel_on_interrupt=True, quiet=True)
    return next(dict(event["plan"]) for event in client.follow(run_id) if event["kind"] == "plan")


def show_result(client: Client, run_id: str, as_json: bool, output: Path | None = None) -> None:
    """The report of a finished run, or its summary as JSON. Exit code 1 where one of its files is altered.

    Raises Altered where the summary itself is.
    """
    from cwa_tui.cli.report import run_report  # here, so that a run that begins does not wait for it

    result = client.result(run_id)
    check = _checked(client, result.summary["run_id"])
    if as_json:
        elsewhere = {"host": client.host, "output": output and str(output)} if client.host else {}
        state = {"fingerprint": check.fingerprint, "altered": check.altered} if check else {}
        show({**result.summary, "folder": str(result.folder), **state, **elsewhere})
    else:
        files = f"{client.host}:{result.folder}" if client.host else str(result.folder)
        files = f"{files} and {output}" if output else files
        show(run_report(result.summary, files, check.fingerprint if check else None))
        if not result.summary["damage"] and not result.summary["ablation"]:
            say("no damage was measured; run without --no-perturbation to see what these weights are worth")
    if check and check.unchecked:
        say(
            f"whether {', '.join(check.unchecked)} is as the run wrote it is not known: an earlier version wrote no hash"
        )
    if check and check.altered:
        show_error(altered_error(result.summary["run_id"], check.altered), as_json=False)
        raise typer.Exit(1)


def _checked(client: Client, run_id: str) -> Check | None:
    """The files of a run beside what it wrote; None, and a word, where the daemon is too old to tell."""
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
