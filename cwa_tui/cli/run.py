"""`cwtool run`, `ablate` and `plan`: ask for a run, or what it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Detach, Json
from cwa_tui.cli.remembered import remember
from cwa_tui.cli.run_options import Given, RunOptions, job_options_of, spec_of, with_its_line
from cwa_tui.cli.tracking import Track, track_run, tracker_of

if TYPE_CHECKING:
    from pathlib import Path

    from cwa_engine.spec import RunSpec

app = typer.Typer()

CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the run instead of leaving it.")
]


@app.command(cls=RunOptions)
def run(
    context: typer.Context,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Rank a model's most critical weights, damage them, and compare the damage with fair controls."""
    _submit("run", context.obj, detach, cancel_on_interrupt, track, as_json)


@app.command(cls=RunOptions)
def ablate(
    context: typer.Context,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Zero candidate weights one at a time, rank them by the measured loss change, and search the smallest set that
    breaks the model."""
    _submit("ablate", context.obj, detach, cancel_on_interrupt, track, as_json)


@app.command(cls=RunOptions)
def plan(context: typer.Context, as_json: Json = False) -> None:
    """Show how much memory a run needs at each dtype, whether that fits the device, and the command line for it.

    No weights are loaded."""
    from cwa_engine.rows import to_plain
    from cwa_tui.cli.following import planned
    from cwa_tui.cli.plan import plan_report

    spec = spec_of("plan", context.obj)
    with connect() as client:
        found = planned(client, client.plan(spec, command=command_typed()))
    if client.host and found.command:
        found = replace(found, command=found.command.replace("cwtool", f"cwtool --host {client.host}", 1))
    show(to_plain(found) if as_json else plan_report(found))


def _submit(
    command: str, given: Given, detach: bool, cancel_on_interrupt: bool, track: str | None, as_json: bool
) -> None:
    """Submit a run; unless detached, follow it to its end and show its result."""
    tracker = tracker_of(track, detach)
    spec, options = spec_of(command, given), job_options_of(command, given)
    with connect() as client:
        output = spec.output
        if client.host and output:  # the daemon there cannot write to a folder of this machine
            _claim_output_here(output, spec, options.force, detach)
            spec = spec.model_copy(update={"output": None})
        run_id = client.submit(spec, command_typed(), options)
        remember([(run_id, "run")], [spec.model])
        if detach:
            show({"run_id": run_id} if as_json else run_id)
            return
        from cwa_tui.cli.following import follow, show_result  # imported while the run begins

        try:
            follow(client, run_id, cancel_on_interrupt)
        except InvalidInput as error:
            raise with_its_line(error, given) from error
        if client.host and output:
            client.fetch(run_id, output, options.force)
        if tracker:
            track_run(client, run_id, tracker)
        show_result(client, run_id, as_json, output)


def _claim_output_here(output: Path, spec: RunSpec, force: bool, detach: bool) -> None:
    """Claim the folder into which the files of a run on another machine are fetched when it is done."""
    from cwa_engine.records.output import claim_output

    if detach:
        raise InvalidInput(
            "with --host and --detach nothing here waits to write --output",
            hint="`cwtool results fetch RUN_ID --output FOLDER` writes it when the run is done",
        )
    claim_output(output, spec, force, unknown=("data_file",))  # the daemon's copy of the texts has another name
