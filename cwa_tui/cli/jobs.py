"""`cwtool jobs` and `cwtool logs`: jobs that wait, run or have ended."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cwa_engine.base.errors import Cancelled, InvalidInput, OutputError
from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import json_text, say, show
from cwa_tui.cli.parameters import Detach, Json, Limit, RunId

app = typer.Typer()
jobs = typer.Typer(help="List jobs that wait, run or have ended, and cancel, pause, resume, retry or prune them.")
app.add_typer(jobs, name="jobs", invoke_without_command=True)

RunIdOrAll = Annotated[
    str | None, typer.Argument(help="Run id, or its first or last characters; if left out, all jobs.")
]


@app.command()
def logs(
    run_id: RunId = "latest",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Print the log of a run; with -f, go on until it has ended."""
    from cwa_tui.events import read_job_event

    with connect() as client:
        job = client.job(run_id)
        for plain in client.follow(job.run_id):
            event = read_job_event(plain)
            if as_json:
                print(json_text(plain), flush=True)
            elif event.line:
                show(f"{time.strftime('%H:%M:%S', time.localtime(event.time))} {event.line}")
            if not follow and event.seq >= job.last_seq:
                return


@jobs.callback()
def list_by_default(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_jobs(as_json=as_json)


@jobs.command("list")
def list_jobs(
    limit: Limit = 20,
    offset: Annotated[int, typer.Option(min=0, help="How many of the latest to skip.")] = 0,
    state: Annotated[
        str | None,
        typer.Option(help="Only jobs that are queued, paused, running, done, failed, cancelled or interrupted."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs whose model's name contains this.")] = None,
    as_json: Json = False,
) -> None:
    """List jobs, the latest first."""
    from cwa_tui.cli.tables import jobs_table

    with connect() as client:
        found = client.jobs(limit, offset, state=state, model=model)
    chosen = bool(state or model or offset)
    show({"jobs": [job.model_dump() for job in found]} if as_json else jobs_table(found, chosen=chosen))


@jobs.command("show")
def show_job(run_id: RunId = "latest", as_json: Json = False) -> None:
    """Show one job: its options, its state, and why it failed."""
    from cwa_tui.cli.tables import job_details

    with connect() as client:
        job = client.job(run_id)
    show(job.model_dump() if as_json else job_details(job))


@jobs.command()
def cancel(run_id: Annotated[str, typer.Argument(help="Run id, or its first or last characters.")]) -> None:
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
    """Remove jobs that ended long ago. Of finished runs only the events are removed, unless --with-results."""
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
