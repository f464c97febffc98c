"""`cwtool doctor`: check this machine, and print what was found."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.base.files import user_path
from cwa_engine.base.plain import JsonMap
from cwa_tui.cli.connection import refuse_other_host
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json
from cwa_tui.text.visible import visible, words

app = typer.Typer()

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@app.command()
def doctor(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set a damaged job database aside, and make a new one from the runs' files."),
    ] = False,
    bundle: Annotated[
        str | None, typer.Option(help="Write the findings and logs to this zip file, without secrets.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that everything on this machine is in order. Exit code 1 if something is not."""
    refuse_other_host("doctor")
    from cwa_daemon.client import examine

    target = None if bundle is None else user_path(bundle, "--bundle")
    found = examine(repair=repair, bundle=target)
    for sentence in found["repaired"]:
        say(sentence)
    show(found if as_json else checks_table(found["checks"]))
    if target:
        say(f"wrote {target}")
    if any(check["state"] == "problem" for check in found["checks"]):
        raise typer.Exit(1)


def checks_table(checks: list[JsonMap]) -> RenderableType:
    """One line a check, with the advice below what needs one."""
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for check in checks:
        found = words(check["found"], overflow="fold")
        if check["advice"]:
            found.append(visible(f"\n→ {check['advice']}"), "bold")
        table.add_row(Text(*_SIGNS[check["state"]]), Text(check["name"]), found)
    return table
