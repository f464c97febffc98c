"""`cwtool tui` and `cwtool version`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cwa_engine import __version__
from cwa_engine.base.errors import NoDaemon
from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Json

app = typer.Typer()


@app.command()
def tui(
    in_ascii: Annotated[
        bool, typer.Option("--ascii", help="Draw in ASCII, as under LC_ALL=C or on a Linux console anyway.")
    ] = False,
    no_mouse: Annotated[
        bool, typer.Option("--no-mouse", help="Leave the mouse to the terminal, which then selects text as ever.")
    ] = False,
) -> None:
    """Watch and start runs in a full-screen terminal interface. NO_COLOR=1 shows it without colours."""
    from cwa_tui.terminal.over_ssh import calm_down

    calm_down(os.environ)
    from cwa_tui.app import run as run_tui

    run_tui(ascii=in_ascii or None, mouse=not no_mouse)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version of this command, and that of the daemon if it runs."""
    daemon = None
    try:
        with connect(start=False) as client:
            daemon = client.daemon_version
    except NoDaemon:
        pass  # without a daemon there is no version of it to show
    shown = f"cwtool {__version__}" + (f", daemon {daemon}" if daemon else ", no daemon runs")
    show({"cwtool": __version__, "daemon": daemon} if as_json else shown)
