"""`cwtool results`: what finished runs found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cwa_engine.base.files import user_path
from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Json, Limit, RunId

app = typer.Typer()
results = typer.Typer(help="List finished runs, show what they found, and fetch their files.")
app.add_typer(results, name="results", invoke_without_command=True)


@results.callback()
def list_by_default(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_results(as_json=as_json)


@results.command("list")
def list_results(
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """List finished runs, the latest first."""
    from cwa_tui.cli.tables import results_table

    with connect() as client:
        summaries = client.results(limit)
    show({"results": summaries} if as_json else results_table(summaries))


@results.command("show")
def show_run(run_id: RunId = "latest", as_json: Json = False) -> None:
    """Show what a run found: baseline, top weights, damage, files."""
    from cwa_tui.cli.following import show_result

    with connect() as client:
        show_result(client, run_id, as_json)


@results.command()
def fetch(
    run_id: RunId = "latest",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Folder to write to; if left out, one named after the run, here.", metavar="FOLDER"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the files of a run in the folder, and keep its other files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a finished run's files to a folder of this machine."""
    given = None if output is None else user_path(output, "--output")
    with connect() as client:
        run_id = client.job(run_id).run_id if run_id != "latest" else client.result(run_id).summary["run_id"]
        folder = given or Path(run_id).absolute()
        client.fetch(run_id, folder, force)
    show({"run_id": run_id, "output": str(folder)} if as_json else f"wrote the files of {run_id} to {folder}")


@results.command()
def topk(
    run_id: RunId = "latest",
    metric: Annotated[str | None, typer.Option(help="Metric of the ranking; if left out, the run's first.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many weights to list.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="How many of the first to skip.")] = 0,
    as_json: Json = False,
) -> None:
    """List a run's ranked weights."""
    from cwa_engine.base.plain import from_plain
    from cwa_engine.rows import TopWeight
    from cwa_tui.cli.report import topk_table

    with connect() as client:
        name, rows = client.topk(run_id, metric, offset, limit)
    if as_json:
        show({"metric": name, "weights": rows})
    else:
        show(topk_table(name, [from_plain(TopWeight, row) for row in rows]))
