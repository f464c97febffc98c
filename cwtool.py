"""The command line: parse, ask the client, render. Nothing here computes, and nothing here imports torch.

Imports that cost more than a few milliseconds stand inside the commands that need them: `cwtool --help` waits for none.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine import __version__
from cwa_engine.base.errors import Cancelled, CwaError, InvalidInput, NoDaemon, OutputError
from cwa_engine.base.files import user_path
from cwa_engine.hub.sources import name_and_revision
from cwa_tui.console.keys import hosts_app, keys_app
from cwa_tui.console.options import Json
from cwa_tui.console.output import json_text, say, show, show_error
from cwa_tui.console.run_options import Given, RunOptions, job_options_of, spec_of
from cwa_tui.console.streams import StreamFailed, flush_streams, give_up, open_streams

if TYPE_CHECKING:
    from pathlib import Path

    from cwa_daemon.client import Client
    from cwa_engine.spec import RunSpec

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find the few weights that a language model cannot live without, and prove it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
jobs_app = typer.Typer(help="Runs that wait, run or have ended.", invoke_without_command=True)
results_app = typer.Typer(help="What finished runs found.", invoke_without_command=True)
daemon_app = typer.Typer(help="The service that holds models warm; the first command that needs it starts it.")
daemon_app.add_typer(keys_app, name="keys")
daemon_app.add_typer(hosts_app, name="hosts")
app.add_typer(jobs_app, name="jobs", rich_help_panel="Runs")
app.add_typer(results_app, name="results", rich_help_panel="Runs")
app.add_typer(daemon_app, name="daemon", rich_help_panel="Service", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(help="Run id, its beginning or its ending; the latest one if left out.")]
Model = Annotated[
    str,
    typer.Argument(help="Alias, Hub id, folder or .gguf file; of the other machine with --host.", show_default=False),
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, latest first.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the run id and return at once.")]
CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the run instead of leaving it.")
]
SomeOrAll = Annotated[str | None, typer.Argument(help="Run id, its beginning or its ending; all if left out.")]
Listen = Annotated[
    str | None, typer.Option(help="Also take connections from allowed keys at tcp://HOST:PORT.", show_default=False)
]
WhenIdle = Annotated[bool, typer.Option("--when-idle", help="Wait until nothing runs; what is queued waits.")]
Kill = Annotated[
    bool, typer.Option("--force", help="Kill a daemon that does not answer or does not end; what it ran is not lost.")
]


@app.callback()
def choose_host(
    host: Annotated[
        str | None,
        typer.Option(
            help="Use the daemon of another machine, by its name in `daemon hosts`: texts and --weights are read here and "
            "sent, --output is written here, models are names or whole paths there."
        ),
    ] = None,
) -> None:
    if host is not None:
        if not host.strip():
            raise InvalidInput(
                "--host is empty", hint="`cwtool daemon hosts` lists names; left out, it is this machine"
            )
        os.environ["CWTOOL_HOST"] = host


@app.command(cls=RunOptions, rich_help_panel="Runs")
def run(
    context: typer.Context,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: Json = False,
) -> None:
    """Rank a model's most critical weights, damage them, and compare with fair controls."""
    _submit("run", context.obj, detach, cancel_on_interrupt, as_json)


@app.command(cls=RunOptions, rich_help_panel="Runs")
def ablate(
    context: typer.Context,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: Json = False,
) -> None:
    """Zero single weights one by one and rank them by what it costs; then seek the smallest set that breaks the model."""
    _submit("ablate", context.obj, detach, cancel_on_interrupt, as_json)


@app.command(cls=RunOptions, rich_help_panel="Models")
def plan(context: typer.Context, as_json: Json = False) -> None:
    """What a run needs at each dtype, whether it fits the device in view, and the command line for it; loads no weights."""
    from cwa_tui.console.following import planned
    from cwa_tui.console.plan import plan_report

    spec = spec_of("plan", context.obj)
    with _client() as client:
        found = planned(client, client.plan(spec, command=_typed()))
    if client.host:
        found["command"] = found["command"].replace("cwtool", f"cwtool --host {client.host}", 1)
    show(found if as_json else plan_report(found))


@app.command(rich_help_panel="Runs")
def rerun(run_id: RunId = "latest", as_json: Json = False) -> None:
    """Repeat a run from its manifest and say whether its tables agree, byte for byte. Exit code 1 where they do not."""
    from cwa_daemon.protocol import JobOptions
    from cwa_tui.console.following import follow
    from cwa_tui.console.rerun import compare, comparison, repeated

    with _client() as client:
        first = client.manifest(run_id)
        again = client.submit_again(repeated(first), _typed(), JobOptions(no_cache=True))
        follow(client, again)
        checks = (client.check(one).check for one in (first["run_id"], again))
        found = compare(first, client.manifest(again), *checks)
    show(found if as_json else comparison(found))
    if not found["agree"]:
        raise typer.Exit(1)


@app.command(rich_help_panel="Runs")
def verify(
    run: Annotated[
        str, typer.Argument(help="Run id, its beginning or its ending, or a folder with the files of a run.")
    ] = "latest",
    fingerprint: Annotated[
        str | None, typer.Option(help="The run's, as whoever published it gives it; `results show` has it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run's files, and recompute its figures from its tables. Exit code 1 where anything does not agree."""
    from cwa_tui.console.verify import as_plain, found_in_words, verified

    found = verified(run, fingerprint, _client)
    show(as_plain(found) if as_json else found_in_words(found))
    if not found.agrees:
        raise typer.Exit(1)


@app.command(rich_help_panel="Models")
def ps(as_json: Json = False) -> None:
    """Warm models and memory."""
    from cwa_tui.console.tables import warm_models

    try:
        with _client(start=False) as client:
            status = client.status()
    except NoDaemon as error:
        if as_json:
            show({"models": [], "devices": []})
        else:
            say(f"no model is warm: {error.message}")
        return
    show(status.model_dump(include={"models", "devices"}) if as_json else warm_models(status))


@app.command(cls=RunOptions, rich_help_panel="Models")
def load(context: typer.Context, model: Model, as_json: Json = False) -> None:
    """Load a model, so that the first run finds it warm."""
    from cwa_tui.console.following import follow

    given = {**context.obj, "model": [model]}
    spec, options = spec_of("load", given), job_options_of("load", given)
    with _client() as client:
        run_id = client.load(spec, _typed(), options)
        follow(client, run_id, cancel_on_interrupt=True)
        show({"model": model, "run_id": run_id} if as_json else f"{model} is warm")


@app.command(rich_help_panel="Models")
def unload(model: Model, as_json: Json = False) -> None:
    """Free a warm model's memory, whatever its revision."""
    from cwa_tui.places import model_name

    name, revision = name_and_revision(model_name(model))
    if revision:
        raise InvalidInput("a model is unloaded with all its revisions", hint=f"`cwtool unload {name}`")
    with _client(start=False) as client:
        names = client.unload(name)
        show({"unloaded": names} if as_json else f"unloaded {', '.join(names)}")


@app.command(rich_help_panel="Models")
def models(
    query: Annotated[str, typer.Argument(help="Only names that contain this.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Models the guide knows, and those on disk already."""
    import dataclasses

    from cwa_engine.guide.catalog import CATALOG
    from cwa_engine.hub.sources import HubAccess, models_on_disk
    from cwa_tui.console.tables import catalog_table

    if host := os.environ.get("CWTOOL_HOST"):
        say(f"on disk: on this machine, not on {host}")
    known = [e for e in CATALOG if query.lower() in f"{e.name} {e.alias} {e.family}".lower()]
    names = {entry.name for entry in known}
    on_disk = models_on_disk(HubAccess.from_environment())
    on_disk = {name: size for name, size in on_disk.items() if name in names or query.lower() in name.lower()}
    if as_json:
        show({"guide": [dataclasses.asdict(entry) for entry in known], "on_disk_bytes": on_disk})
    else:
        show(catalog_table(known, on_disk) if known or on_disk else f"no model is called like '{query}'")


@app.command(rich_help_panel="Runs")
def logs(
    run_id: RunId = "latest",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """What a run has said so far; with -f, also what it will say."""
    import time

    from cwa_engine.base.events import describe

    with _client() as client:
        job = client.job(run_id)
        for event in client.follow(job.run_id):
            if as_json:
                print(json_text(event), flush=True)
            elif line := describe(event):
                show(f"{time.strftime('%H:%M:%S', time.localtime(event['time']))} {line}")
            if not follow and event["seq"] >= job.last_seq:
                return


@jobs_app.callback()
def jobs_default(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        jobs_list(as_json=as_json)


@jobs_app.command("list")
def jobs_list(
    limit: Limit = 20,
    offset: Annotated[int, typer.Option(min=0, help="How many to skip.")] = 0,
    state: Annotated[
        str | None,
        typer.Option(help="Only those that are queued, paused, running, done, failed, cancelled or interrupted."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only models whose name contains this.")] = None,
    as_json: Json = False,
) -> None:
    """The latest jobs."""
    from cwa_tui.console.tables import jobs_table

    with _client() as client:
        jobs = client.jobs(limit, offset, state=state, model=model)
    chosen = bool(state or model or offset)
    show({"jobs": [job.model_dump() for job in jobs]} if as_json else jobs_table(jobs, chosen=chosen))


@jobs_app.command("show")
def jobs_show(run_id: RunId = "latest", as_json: Json = False) -> None:
    """One job: what was asked, its state, why it failed."""
    from cwa_tui.console.tables import job_details

    with _client() as client:
        job = client.job(run_id)
    show(job.model_dump() if as_json else job_details(job))


@jobs_app.command("cancel")
def jobs_cancel(run_id: Annotated[str, typer.Argument(help="Run id, its beginning or its ending.")]) -> None:
    """Cancel a job, or its copy to --output; a running one ends between two batches, with the model as it was."""
    from cwa_tui.console.following import follow

    with _client() as client:
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


@jobs_app.command("pause")
def jobs_pause(run_id: SomeOrAll = None) -> None:
    """Keep a queued job, or all of them, from being begun; what runs goes on."""
    with _client() as client:
        _list_moved("paused", client.pause(run_id))


@jobs_app.command("resume")
def jobs_resume(run_id: SomeOrAll = None) -> None:
    """Let a paused job, or all of them, take its turn again."""
    with _client() as client:
        _list_moved("queued again", client.resume(run_id))


@jobs_app.command("prune")
def jobs_prune(
    older_than: Annotated[str, typer.Option(help="How long ago they ended: 30d, 1h30m, 0.")] = "30d",
    with_results: Annotated[
        bool, typer.Option("--with-results", help="Also remove finished runs and their files.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Forget jobs that ended long ago; of finished runs only what they said on the way, unless --with-results."""
    with _client() as client:
        pruned = client.prune(_age(older_than), with_results, dry_run)
    if as_json:
        show(pruned.model_dump())
        return
    would = "would be " if dry_run else ""
    runs = f"{len(pruned.runs)} finished runs" if with_results else f"events of {len(pruned.runs)} finished runs"
    show(f"{len(pruned.jobs)} jobs without a result and {runs} {would}removed")


@jobs_app.command("retry")
def jobs_retry(
    run_id: RunId = "latest",
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Run the same thing again, as a new job."""
    from cwa_tui.console.following import follow, show_result

    with _client() as client:
        new = client.retry(run_id)
        if detach:
            show({"run_id": new} if as_json else new)
            return
        follow(client, new)
        if client.job(new).kind == "run":
            show_result(client, new, as_json)


@results_app.callback()
def results_default(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        results_list(as_json=as_json)


@results_app.command("list")
def results_list(
    limit: Limit = 20,
    as_json: Json = False,
) -> None:
    """Finished runs."""
    from cwa_tui.console.tables import results_table

    with _client() as client:
        summaries = client.results(limit)
    show({"results": summaries} if as_json else results_table(summaries))


@results_app.command("show")
def results_show(run_id: RunId = "latest", as_json: Json = False) -> None:
    """What a run found: baseline, top weights, damage, files."""
    from cwa_tui.console.following import show_result

    with _client() as client:
        show_result(client, run_id, as_json)


@results_app.command("fetch")
def results_fetch(
    run_id: RunId = "latest",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Where to; a folder named as the run, here, if left out.", metavar="FOLDER"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a run's files in the folder, whatever else it holds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a finished run's files to a folder of this machine."""
    from pathlib import Path

    given = None if output is None else user_path(output, "--output")
    with _client() as client:
        run_id = client.job(run_id).run_id if run_id != "latest" else client.result(run_id).summary["run_id"]
        folder = given or Path(run_id).absolute()
        client.fetch(run_id, folder, force)
    show({"run_id": run_id, "output": str(folder)} if as_json else f"wrote the files of {run_id} to {folder}")


@results_app.command("topk")
def results_topk(
    run_id: RunId = "latest",
    metric: Annotated[str | None, typer.Option(help="Which ranking; the run's first if left out.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many weights.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="How many to skip.")] = 0,
    as_json: Json = False,
) -> None:
    """A run's ranked weights."""
    from cwa_engine.base.plain import from_plain
    from cwa_engine.rows import TopWeight
    from cwa_tui.console.report import topk_table

    with _client() as client:
        name, rows = client.topk(run_id, metric, offset, limit)
    weights = () if as_json else [from_plain(TopWeight, row) for row in rows]
    show({"metric": name, "weights": rows} if as_json else topk_table(name, weights))


@daemon_app.command("start")
def daemon_start(listen: Listen = None) -> None:
    """Start the daemon in the background."""
    _only_here("daemon start")
    from cwa_daemon.client import start_daemon

    show("the daemon runs" if start_daemon(listen=listen) else "the daemon was running already")


@daemon_app.command("stop")
def daemon_stop(when_idle: WhenIdle = False, force: Kill = False) -> None:
    """Stop the daemon. What runs is broken off and, like what is queued, runs after the next start."""
    _stop(when_idle, force)


@daemon_app.command("restart")
def daemon_restart(when_idle: WhenIdle = False, force: Kill = False, listen: Listen = None) -> None:
    """Stop the daemon and start it again; warm models are loaded afresh when they are needed."""
    _only_here("daemon restart")
    _stop(when_idle, force)
    daemon_start(listen)


@daemon_app.command("status")
def daemon_status(as_json: Json = False) -> None:
    """Whether the daemon runs, and what it does. Exit code 3 where it does not run."""
    from cwa_tui.console import tables

    with _client(start=False) as client:
        status = client.status()
    if as_json:
        show({**status.model_dump(), "reached": client.where})
    else:
        show(tables.daemon_status(status, client.where))


@daemon_app.command("logs")
def daemon_logs(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last lines.")] = 50,
) -> None:
    """The last lines of the daemon's and its workers' logs."""
    _only_here("daemon logs")
    from cwa_daemon.client import log_files

    for path in log_files():
        say(f"==> {path}")
        for line in path.read_bytes().splitlines()[-lines:]:
            show(line.decode("utf-8", "backslashreplace"))


@daemon_app.command("install-service")
def daemon_install_service(
    only_print: Annotated[bool, typer.Option("--print", help="Only show the unit.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a unit that differs.")] = False,
) -> None:
    """Write a systemd user unit, so that the daemon is there after every boot."""
    _only_here("daemon install-service")
    from cwa_daemon.client import install_service, service_text

    if only_print:
        show(service_text().rstrip())
        return
    path, commands = install_service(force)
    show(f"wrote {path}")
    say("next:\n" + "\n".join(f"  {command}" for command in commands))


@app.command(rich_help_panel="Service")
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set a damaged job database aside and find finished runs again.")
    ] = False,
    bundle: Annotated[
        str | None, typer.Option(help="Write the findings and logs to this zip file, without secrets.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Whether everything is as it should be on this machine. Exit code 1 where it is not."""
    _only_here("doctor")
    from cwa_daemon.client import examine
    from cwa_tui.console.doctor import checks_table

    target = None if bundle is None else user_path(bundle, "--bundle")
    found = examine(repair=repair, bundle=target)
    for sentence in found["repaired"]:
        say(sentence)
    show(found if as_json else checks_table(found["checks"]))
    if target:
        say(f"wrote {target}")
    if any(check["state"] == "problem" for check in found["checks"]):
        raise typer.Exit(1)


@app.command(rich_help_panel="Service")
def tui() -> None:
    """Watch and start runs in a full-screen terminal interface."""
    from cwa_tui.app import run as run_tui

    run_tui()


@app.command(rich_help_panel="Service")
def version(as_json: Json = False) -> None:
    """Versions of this client and of the daemon that runs."""
    daemon = None
    try:
        with _client(start=False) as client:
            daemon = client.daemon_version
    except NoDaemon:
        pass  # no daemon has no version, which is what is shown
    shown = f"cwtool {__version__}" + (f", daemon {daemon}" if daemon else ", no daemon runs")
    show({"cwtool": __version__, "daemon": daemon} if as_json else shown)


def main() -> None:
    """Run a command; an error becomes a message, a hint and its exit code. Who does not listen any more hears nothing."""
    open_streams()
    try:
        sys.exit(_exit_code())
    except StreamFailed as failure:
        sys.exit(give_up(failure))
    except KeyboardInterrupt:
        sys.exit(130)


def _exit_code() -> int | str | None:
    """Run the command; gives its exit code when all that it said is written. Raises StreamFailed."""
    code: int | str | None = 0
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except CwaError as error:
        show_error(error, as_json="--json" in sys.argv)
        code = error.exit_code
    flush_streams()
    return code


def _submit(command: str, given: Given, detach: bool, cancel_on_interrupt: bool, as_json: bool) -> None:
    """Submit a run, and stay with it unless it is to be left alone."""
    spec, options = spec_of(command, given), job_options_of(command, given)
    with _client() as client:
        output = spec.output
        if client.host and output:  # the daemon there cannot write it
            _claim_output_here(output, spec, options.force, detach)
            spec = spec.model_copy(update={"output": None})
        run_id = client.submit(spec, _typed(), options)
        if detach:
            show({"run_id": run_id} if as_json else run_id)
            return
        from cwa_tui.console.following import follow, show_result  # in the time in which the run begins

        follow(client, run_id, cancel_on_interrupt)
        if client.host and output:
            client.fetch(run_id, output, options.force)
        show_result(client, run_id, as_json, output)


def _claim_output_here(output: Path, spec: RunSpec, force: bool, detach: bool) -> None:
    """Before a run on another machine, whose files are fetched when it is done."""
    from cwa_engine.records.output import claim_output

    if detach:
        raise InvalidInput(
            "with --host and --detach nothing here waits to write --output",
            hint="`cwtool results fetch RUN_ID --output FOLDER` writes it when the run is done",
        )
    claim_output(output, spec, force, unknown=("data_file",))  # the copy there has a name of its own


def _only_here(command: str) -> None:
    """Refuse --host for what looks after this machine."""
    host = os.environ.get("CWTOOL_HOST")
    if host:
        raise InvalidInput(f"`cwtool {command}` is about the machine it is typed on", hint=f"type it on {host}")


def _typed() -> str:
    """The command line as it was typed, for the manifest."""
    return shlex.join(["cwtool", *sys.argv[1:]])


@contextmanager
def _client(start: bool = True) -> Iterator[Client]:
    from cwa_daemon.client import Client

    with Client.connect(start=start) as client:
        if client.daemon_version != __version__:
            say(
                f"the daemon is cwtool {client.daemon_version}, this is {__version__}; "
                "`cwtool daemon restart --when-idle` brings them together"
            )
        yield client


def _age(given: str) -> float:
    """Seconds of --older-than. Raises InvalidInput."""
    from cwa_engine.base.durations import seconds

    age_s = seconds(given)
    if age_s == float("inf"):
        raise InvalidInput(f"nothing is older than '{given}'", hint="like --older-than 30d, 12h or 0")
    return age_s


def _list_moved(what: str, run_ids: list[str]) -> None:
    for run_id in run_ids:
        show(run_id)
    say(f"{len(run_ids)} {what}")


def _stop(when_idle: bool, force: bool) -> None:
    from cwa_daemon.client import stop_daemon

    if when_idle and force:
        raise InvalidInput("--when-idle waits for what runs, --force does not", hint="give one of them")
    stopped = stop_daemon(timeout_s=None if when_idle else 30.0, when_idle=when_idle, force=force)
    if stopped is None:
        say("no daemon was running")
        return
    if stopped.by_force:
        say("it could not be asked, and was ended by force; `cwtool jobs` shows what runs again")
    for run_id in stopped.interrupted:
        say(f"{run_id} was broken off; it runs again after the next start, unless `cwtool jobs cancel {run_id}`")
    if stopped.queued:
        say(f"{stopped.queued} queued jobs wait for the next start")
    host = os.environ.get("CWTOOL_HOST")
    show(f"the daemon of {host} stops" if host else "the daemon has stopped")


if __name__ == "__main__":
    main()
