"""`cwtool weight`: all that can be found out about one weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwa_engine.base.errors import InvalidInput, OutputError, RunFailed
from cwa_engine.base.files import user_path, write_whole
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.output import json_text, say, show
from cwa_tui.cli.parameters import Json
from cwa_tui.cli.remembered import remember
from cwa_tui.cli.run_options import Given, RunOptions, spec_of

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.base.plain import JsonMap

app = typer.Typer()

_TARGET = "weights"  # the field in which a weight stands that was typed where the model usually is


class WeightOptions(RunOptions):
    """`weight`: behind `--model NAME` the weight stands alone."""

    def _completed(self, given: dict[str, Any], config: str | None, alone: str | None) -> Given:
        if alone is not None and alone.endswith("]") and "model" in given:
            given, alone = {**given, _TARGET: [alone]}, None
        return super()._completed(given, config, alone)


@app.command(cls=WeightOptions)
def weight(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="'NAME[out,in]'",
            help="The weight, as `--weights` of a run takes it: quote it for the shell.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE.json", help="Also write the card here, as JSON.")
    ] = None,
    page: Annotated[
        str | None, typer.Option("--page", metavar="FILE.html", help="Also write a page of it here, with its figures.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine one weight: its value and rank, what damaging it does, each of its bits, and what its channels carry."""
    given = dict(context.obj)
    target = name or (given.pop(_TARGET, None) or [""])[0]
    if not target:
        raise InvalidInput(
            "no weight is named",
            hint=f"write it behind the model: `cwtool weight {given['model'][0]} "
            "'model.layers.1.mlp.down_proj.weight[507,1022]'`",
        )
    given.pop(_TARGET, None)
    spec = spec_of("weight", given)
    json_file, page_file = _file(output, "--output", "card.json"), _file(page, "--page", "card.html")
    with connect() as client:
        run_id = client.weight(spec, target, command_typed())
        remember(models=[spec.model])
        card = _card(client, run_id)
    if json_file:
        _write(json_file, json_text(card, indent=1) + "\n")
    from cwa_engine.base.plain import from_plain
    from cwa_engine.weight_rows import WeightCard

    found = from_plain(WeightCard, card)
    if as_json:
        show(card)
    else:
        from cwa_tui.tables.weight_card import card_report

        show(card_report(found))
    if page_file:  # last, for what draws its figures may not be installed
        from cwa_engine.reports.page import card_page

        _write(page_file, card_page(found))


def _file(given: str | None, flag: str, example: str) -> Path | None:
    """Where to write, known before anything is computed. Raises InvalidInput for what can be no file."""
    if given is None:
        return None
    path = user_path(given, flag)
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise InvalidInput(f"{flag} {given} {wrong}", hint=f"give a file, like {example}")
    return path


def _card(client: Client, run_id: str) -> JsonMap:
    """The card that a job made, when it is done. Raises its error."""
    from cwa_tui.cli.following import follow

    follow(client, run_id, cancel_on_interrupt=True)
    card = next((event["card"] for event in client.follow(run_id) if event["kind"] == "card"), None)
    if card is None:
        raise RunFailed(f"{run_id} made no card", hint=f"`cwtool logs {run_id}` says what it did")
    return dict(card)


def _write(file: Path, content: str) -> None:
    try:
        write_whole(file, content.encode("utf-8"))
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}", hint="give another file") from error
    say(f"written to {file}")
