"""`cwtool results`: what finished runs found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import Altered, InvalidInput, NotFound
from cwa_engine.base.files import user_path
from cwa_tui.cli import completion, listing, marks, query
from cwa_tui.cli.connection import connect
from cwa_tui.cli.groups import ListByDefault
from cwa_tui.cli.output import say, show, show_exactly
from cwa_tui.cli.parameters import EXPORTED, FinishedRunId, Json, Limit
from cwa_tui.cli.remembered import remember

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_daemon.protocol import JobView
    from cwa_engine.base.plain import JsonMap

app = typer.Typer()
results = typer.Typer(
    cls=ListByDefault,
    help="List finished runs, query them in SQL, show what they found, tag them, export their tables, fetch their files. "
    "Without a command it lists: `cwtool results -n 3` is `cwtool results list -n 3`.",
)
app.add_typer(results, name="results")
results.command("query")(query.query)
results.command("tag", cls=marks.TagCommand)(marks.tag)
results.command("note")(marks.note)


@results.command("list")
def list_results(
    limit: Limit = 20,
    offset: listing.Offset = 0,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Runs in these states with what became of them; done if left out.",
            autocompletion=completion.states,
            metavar="STATE",
        ),
    ] = None,
    model: listing.OfModel = None,
    search: listing.Search = None,
    since: listing.Since = None,
    tag: listing.Tag = None,
    metric: listing.OfMetric = None,
    ratio_above: listing.RatioAbove = None,
    where: Annotated[
        str | None,
        typer.Option(
            help='Only runs for which this SQL condition holds, like "parameters < 1e9 AND seq_len = 512"; its columns '
            "are those of the table runs of `results query`.",
            metavar="CONDITION",
        ),
    ] = None,
    sort: listing.Sort = "created",
    reverse: listing.Reverse = False,
    as_json: Json = False,
) -> None:
    """List finished runs, the latest first; with --state also those that have no result.

    critical and control are perplexity over that of the intact model: of the critical set of the largest k that has
    controls, and of the control whose leading draw changes the loss most."""
    from cwa_tui.cli.tables import results_table

    filters = (model, search, since, sort, reverse, tag, metric, ratio_above)
    asked = listing.query(limit, offset, state or ["done"], ["run"], *filters)
    among = None if where is None else query.runs_where(where)
    with connect() as client:
        page = listing.listed(client, asked) if among is None else listing.listed_among(client, asked, among)
        summaries = [_summary_or_reason(client, job) for job in page.jobs]
    remember([(job.run_id, f"run {job.state}") for job in page.jobs], [job.model for job in page.jobs])
    if as_json:
        show({"results": summaries, "total": page.total})
    elif summaries:
        show(results_table(page.jobs, summaries))
        listing.say_how_many(asked, page)
    elif where is None and asked == listing.query(limit, states=["done"], kinds=["run"]):
        show("no finished runs yet; `cwtool run smollm2-135m` makes one")
    else:
        show("no such run; `cwtool results` lists all")


def _summary_or_reason(client: Client, job: JobView) -> JsonMap:
    """A run's summary; why there is none, or why it cannot be read: the others are to be listed all the same."""
    if job.state != "done":
        return {"run_id": job.run_id, "state": job.state, "error": job.error}
    try:
        return {**client.result(job.run_id).summary, "tags": job.tags, "note": job.note}
    except (Altered, NotFound) as error:
        return {"run_id": job.run_id, "unreadable": error.message}


@results.command("show")
def show_run(
    run_id: FinishedRunId = "latest",
    config: Annotated[
        bool, typer.Option("--config", help="Print the run's options as TOML, for `cwtool run --config FILE`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a run found: baseline, top weights, damage, files."""
    if config and as_json:
        raise InvalidInput("--config prints TOML, and --json JSON", hint="give one of them")
    with connect() as client:
        if config:
            from cwa_engine.command_line import config_text
            from cwa_tui.cli.rerun import repeated

            show(config_text(repeated(client.manifest(run_id))))
            return
        from cwa_tui.cli.following import show_result

        show_result(client, run_id, as_json)


@results.command()
def fetch(
    run_id: FinishedRunId = "latest",
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
    run_id: FinishedRunId = "latest",
    metric: Annotated[
        str | None,
        typer.Option(help="Metric of the ranking; if left out, the run's first.", autocompletion=completion.metrics),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many weights to list.")] = 100,
    offset: listing.Offset = 0,
    sort: Annotated[
        str,
        typer.Option(
            help="By any column of the table, such as rank, score, value, layer or parameter: numbers but for rank and "
            "layer from the largest.",
            autocompletion=completion.weight_columns,
        ),
    ] = "rank",
    reverse: listing.Reverse = False,
    words: Annotated[
        str | None,
        typer.Option(
            "--filter",
            "-S",
            help="Only weights with all of these words in their name, or like 'layer:3 score>0.5 component:down'.",
            metavar="WORDS",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all columns as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """List a run's ranked weights, as many as there are."""
    from cwa_tui.cli import weights
    from cwa_tui.cli.report import topk_table

    if as_csv and as_json:
        raise InvalidInput("--csv and --json are two formats", hint="give one of them")
    order = weights.Order(sort, reverse, words or "")
    with connect() as client:
        name, found, total = weights.ranked(client, run_id, metric, order, offset, limit)
    if as_json:
        show({"metric": name, "weights": weights.plain(found)})
    elif as_csv:
        show_exactly(weights.csv(found))
    elif found:
        show(topk_table(name, found))
        if total is None or total > offset + len(found):
            of_all = f" of {total}" if total else ""
            say(f"{offset + 1} to {offset + len(found)}{of_all}; -n lists as many as you like")
    else:
        show("no weight matches" if words else f"the ranking has no more than {offset} weights")


@results.command()
def export(
    run_id: FinishedRunId = "latest",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="csv, json, parquet, markdown, latex or safetensors, as in `cwtool export`.",
            autocompletion=completion.one_of(*EXPORTED),
        ),
    ] = "csv",
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            "-t",
            help="Print this table only, such as perturbation or topk_grad_x_weight; if left out, all are written to files.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Folder to write to; if left out, one named after the run, here.", metavar="FOLDER"
        ),
    ] = None,
) -> None:
    """Print a table of a run, or write all of its tables: `cwtool export` for runs alone."""
    from cwa_engine.exchange.writing import EXPORTS, checked_export
    from cwa_tui.cli.exported import exported
    from cwa_tui.cli.sources import opened_run

    chosen = checked_export(form, EXPORTS)
    with connect() as client, opened_run(client, run_id) as report:
        exported(report, chosen, table, output)
