"""`cwtool jobs` and `cwtool logs`: jobs that wait, run or have ended."""

from __future__ import annotations

import time
from collections import deque
from typing import Annotated

import typer

from cwa_engine.base.errors import Cancelled, InvalidInput, OutputError
from cwa_tui.cli import completion, listing
from cwa_tui.cli.connection import connect
from cwa_tui.cli.groups import ListByDefault
from cwa_tui.cli.output import json_text, say, show
from cwa_tui.cli.parameters import Detach, Json, Limit, RunId
from cwa_tui.cli.remembered import remember

app = typer.Typer()
jobs = typer.Typer(
    cls=ListByDefault,
    help="List jobs that wait, run or have ended, and cancel, pause, resume, retry or prune them. "
    "Without a command it lists: `cwtool jobs -n 3` is `cwtool jobs list -n 3`.",
)
app.add_typer(jobs, name="jobs")

RunIdOrAll = Annotated[
    str | None,
    typer.Argument(
        help="Run id, or its first or last characters; if left out, all jobs.", autocompletion=completion.run_ids
    ),
]


@app.command()
def logs(
    run_id: RunId = "latest",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=1, help="Begin with the last N lines.", show_default="all")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the log of a run; with -f, go on until it has ended."""
    from cwa_tui.store.events import read_job_event

    last: deque[str] = deque(maxlen=lines)  # of what was there when the command was typed
    with connect() as client:
        job = client.job(run_id)
        for plain in client.follow(job.run_id):
            event = read_job_event(plain)
            said = json_text(plain) if as_json else _log_line(event.time, event.line)
            if said:
                last.append(said)
            if event.seq >= job.last_seq:
                for line in last:
                    show(line)
                last.clear()
                if not follow:
                    return


def _log_line(moment: float, line: str | None) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(moment))} {line}" if line else ""


@jobs.command("list")
def list_jobs(
    limit: Limit = 20,
    offset: listing.Offset = 0,
    state: listing.States = None,
    kind: listing.Kinds = None,
    everything: Annotated[
        bool,
        typer.Option("--all", "-a", help="Runs, and whatever else the daemon does: loads, plans, looks at weights."),
    ] = False,
    model: listing.OfModel = None,
    search: listing.Search = None,
    since: listing.Since = None,
    tag: listing.Tag = None,
    metric: listing.OfMetric = None,
    ratio_above: listing.RatioAbove = None,
    sort: listing.Sort = "created",
    reverse: listing.Reverse = False,
    as_json: Json = False,
) -> None:
    """List runs that wait, run or have ended, the latest first; with --all or --kind also loads and plans."""
    from cwa_tui.cli.tables import jobs_table

    if everything and kind:
        raise InvalidInput("--all lists every kind, and --kind some", hint="give one of them")
    kinds = kind or (list(listing.KINDS) if everything else ["run"])
    asked = listing.query(limit, offset, state, kinds, model, search, since, sort, reverse, tag, metric, ratio_above)
    with connect() as client:
        page = listing.listed(client, asked)
    remember([(job.run_id, f"{job.kind} {job.state}") for job in page.jobs], [job.model for job in page.jobs])
    if as_json:
        show({"jobs": [job.model_dump() for job in page.jobs], "total": page.total})
    elif page.jobs:
        show(jobs_table(page.jobs))
        listing.say_how_many(asked, page)
    elif asked == listing.query(limit, kinds=["run"]):
        show("no runs yet; `cwtool run smollm2-135m` makes one, `cwtool jobs --all` lists loads and plans")
    else:
        show("no such job; `cwtool jobs --all` lists all")


@jobs.command("show")
def show_job(run_id: RunId = "latest", as_json: Json = False) -> None:
    """Show one job: its options, its state, and why it failed."""
    from cwa_tui.cli.tables import job_details

    with connect() as client:
        job = client.job(run_id)
    show(job.model_dump() if as_json else job_details(job))


@jobs.command()
def cancel(
    run_id: Annotated[
        str, typer.Argument(help="Run id, or its first or last characters.", autocompletion=completion.run_ids)
    ],
) -> None:
    """Cancel a job, or its copy to --output. A running job ends between two batches and leaves the model unchanged."""
    from cwa_tui.cli.following import follow

    with connect() as client:
        job = client.job(run_id)
        if job.ended and not job.copying:
            say(f"{job.run_id} is {job.state} already")
            return
        client.cancel(job.run_id)
        try:
            follow(client, job.run_id, quiet=True)
        except Cancelled:
            show(f"{job.run_id} is cancelled")
        except OutputError as error:
            show(error.message)
        else:
            say(f"{job.run_id} was done before it could be cancelled")


@jobs.command()
def pause(run_id: RunIdOrAll = None) -> None:
    """Keep a queued job, or all queued jobs, from starting. Running jobs go on."""
    with connect() as client:
        _list_changed("paused", client.pause(run_id))


@jobs.command()
def resume(run_id: RunIdOrAll = None) -> None:
    """Queue a paused job, or all paused jobs, again."""
    with connect() as client:
        _list_changed("queued again", client.resume(run_id))


@jobs.command()
def prune(
    older_than: Annotated[str, typer.Option(help="Time since they ended, like 30d, 1h30m or 0.")] = "30d",
    with_results: Annotated[
        bool, typer.Option("--with-results", help="Also remove finished runs and their files.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; only say what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove jobs that ended long ago. Of finished runs only the events are removed, unless --with-results.

    A job tagged keep stays as it is; one that is removed loses its tags and its note."""
    with connect() as client:
        pruned = client.prune(_age_s(older_than), with_results, dry_run)
    if as_json:
        show(pruned.model_dump())
        return
    would = "would be " if dry_run else ""
    runs = f"{len(pruned.runs)} finished runs" if with_results else f"events of {len(pruned.runs)} finished runs"
    show(f"{len(pruned.jobs)} jobs without a result and {runs} {would}removed")


@jobs.command()
def retry(
    run_id: RunId = "latest",
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Run an ended job again, as a new job with the same options."""
    from cwa_tui.cli.following import follow, show_result

    with connect() as client:
        new = client.retry(run_id)
        if detach:
            show({"run_id": new} if as_json else new)
            return
        follow(client, new)
        if client.job(new).kind == "run":
            show_result(client, new, as_json)


def _age_s(given: str) -> float:
    """Seconds of --older-than. Raises InvalidInput."""
    from cwa_engine.base.durations import seconds

    age_s = seconds(given)
    if age_s == float("inf"):
        raise InvalidInput(f"nothing is older than '{given}'", hint="like --older-than 30d, 12h or 0")
    return age_s


def _list_changed(state: str, run_ids: list[str]) -> None:
    for run_id in run_ids:
        show(run_id)
    say(f"{len(run_ids)} {state}")
