"""`cwtool results tag` and `cwtool results note`: what users write to runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from cwa_tui.cli import completion
from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from cwa_daemon.protocol import Marks

MarkedRun = Annotated[
    str, typer.Argument(help="Run id, or its first or last characters.", autocompletion=completion.run_ids)
]


class TagCommand(TyperCommand):
    """`results tag RUN +good -draft`: a word behind a dash is a tag to remove, and no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {option for parameter in self.params for option in parameter.opts} | set(ctx.help_option_names)
        told: list[str] = []
        for arg in args:
            is_tag = arg.startswith("-") and not arg.startswith("--") and arg not in known and len(arg) > 1
            told += ["--remove", arg[1:]] if is_tag else [arg]
        return super().parse_args(ctx, told)


def tag(
    run_id: MarkedRun,
    tags: Annotated[
        list[str] | None,
        typer.Argument(
            help="+NAME or NAME adds a tag, -NAME removes it.", show_default=False, metavar="[+NAME|-NAME]..."
        ),
    ] = None,
    add: Annotated[list[str] | None, typer.Option("--add", help="Add this tag.", metavar="NAME")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Remove this tag.", metavar="NAME")] = None,
    as_json: Json = False,
) -> None:
    """Add tags to a run and remove them; without any, print those it has. `jobs prune` leaves a run tagged keep alone."""
    added = [name.removeprefix("+") for name in tags or ()] + (add or [])
    with connect() as client:
        job = client.job(run_id)
        changed = bool(added or remove)
        found = client.mark(job.run_id, added, remove or []) if changed else _marks(job.tags, job.note)
    _show(job.run_id, found, as_json, " ".join(found.tags) or f"{job.run_id} has no tags")


def note(
    run_id: MarkedRun,
    text: Annotated[
        str | None,
        typer.Argument(
            help="The note; - reads it from standard input, '' removes it; if left out, it is printed.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a note to a run, in place of the one it has, or print it."""
    with connect() as client:
        job = client.job(run_id)
        written = sys.stdin.read() if text == "-" else text
        found = _marks(job.tags, job.note) if written is None else client.mark(job.run_id, note=written.strip())
    _show(job.run_id, found, as_json, found.note or f"{job.run_id} has no note")


def _marks(tags: list[str], written: str) -> Marks:
    from cwa_daemon.protocol import Marks

    return Marks(tags=tags, note=written)


def _show(run_id: str, marks: Marks, as_json: bool, said: str) -> None:
    show({"run_id": run_id, **marks.model_dump()} if as_json else said)
