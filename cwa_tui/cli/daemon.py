"""`cwtool daemon`: start, stop and look after the service."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli.connection import chosen_host, connect, refuse_other_host
from cwa_tui.cli.keys import hosts_app, keys_app
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json

BETWEEN_LOOKS_S = 0.5  # at logs that are followed

app = typer.Typer()
daemon = typer.Typer(
    help="Start, stop and look after the service that keeps models warm. The first command that needs it starts it."
)
daemon.add_typer(keys_app, name="keys")
daemon.add_typer(hosts_app, name="hosts")
app.add_typer(daemon, name="daemon", no_args_is_help=True)

Listen = Annotated[
    str | None, typer.Option(help="Also accept connections with allowed keys at tcp://HOST:PORT.", show_default=False)
]
WhenIdle = Annotated[bool, typer.Option("--when-idle", help="Wait until no job runs; queued jobs stay queued.")]
Kill = Annotated[
    bool,
    typer.Option(
        "--force", help="Kill a daemon that does not answer or does not end. Its jobs are kept and run again."
    ),
]


@daemon.command("start")
def start(listen: Listen = None) -> None:
    """Start the daemon in the background."""
    refuse_other_host("daemon start")
    from cwa_daemon.client import settings_not_taken, start_daemon

    if start_daemon(listen=listen):
        show("the daemon runs")
        return
    show("the daemon was running already")
    if unlike := settings_not_taken(listen=listen):
        say("\n".join(unlike))
        say("it goes on as it is; `cwtool daemon restart --when-idle` takes what this shell has")


@daemon.command("stop")
def stop(when_idle: WhenIdle = False, force: Kill = False) -> None:
    """Stop the daemon. Running jobs are interrupted; they and queued jobs run after the next start."""
    from cwa_daemon.client import stop_daemon

    if when_idle and force:
        raise InvalidInput("--when-idle waits for running jobs, --force does not", hint="give one of them")
    stopped = stop_daemon(timeout_s=None if when_idle else 30.0, when_idle=when_idle, force=force)
    if stopped is None:
        say("no daemon was running")
        return
    if stopped.by_force:
        say("the daemon did not answer and was ended by force; `cwtool jobs` shows which jobs run again")
    for run_id in stopped.interrupted:
        say(f"{run_id} was interrupted; it runs again after the next start, unless `cwtool jobs cancel {run_id}`")
    if stopped.queued:
        say(f"{stopped.queued} queued jobs wait for the next start")
    host = chosen_host()
    show(f"the daemon of {host} stops" if host else "the daemon has stopped")


@daemon.command("restart")
def restart(when_idle: WhenIdle = False, force: Kill = False, listen: Listen = None) -> None:
    """Stop the daemon and start it again. Warm models are loaded again when a run needs them."""
    refuse_other_host("daemon restart")
    stop(when_idle, force)
    start(listen)


@daemon.command("status")
def status(as_json: Json = False) -> None:
    """Show whether the daemon runs, and what it does. Exit code 3 if it does not run."""
    from cwa_tui.cli.tables import daemon_status

    with connect(start=False) as client:
        found = client.status()
    show({**found.model_dump(), "reached": client.where} if as_json else daemon_status(found, client.where))


@daemon.command("logs")
def logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each log.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")] = False,
) -> None:
    """Print the last lines of the daemon's and its workers' logs; with -f, go on with what is written."""
    refuse_other_host("daemon logs")
    from cwa_daemon.client import log_files
    from cwa_tui.cli.log_files import LogReader

    reader = LogReader(lines)
    while True:
        for path, line in reader.new_lines(log_files()):
            if path:
                say(f"==> {path}")
            show(line)
        if not follow:
            return
        time.sleep(BETWEEN_LOOKS_S)  # files tell nobody that they have grown


@daemon.command("install-service")
def install(
    only_print: Annotated[bool, typer.Option("--print", help="Print the unit and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a unit that differs.")] = False,
) -> None:
    """Write a systemd user unit that starts the daemon at every boot."""
    refuse_other_host("daemon install-service")
    from cwa_daemon.client import install_service, service_text

    if only_print:
        show(service_text().rstrip())
        return
    path, commands = install_service(force)
    show(f"wrote {path}")
    say("next:\n" + "\n".join(f"  {command}" for command in commands))
