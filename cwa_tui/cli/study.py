"""`cwtool study`: many runs for one question, from the plan to the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cwa_engine.base.errors import DaemonUnreachable, InvalidInput, QueueFull
from cwa_tui.cli import completion
from cwa_tui.cli.connection import chosen_host
from cwa_tui.cli.groups import ListByDefault
from cwa_tui.cli.output import say, show, stderr
from cwa_tui.cli.parameters import EXPORTED, Json
from cwa_tui.cli.remembered import remember
from cwa_tui.cli.run_options import job_options_of
from cwa_tui.cli.study_options import StudyOptions, study_typed
from cwa_tui.cli.study_place import (
    Gpus,
    On,
    Place,
    Runners,
    Slots,
    Store,
    asked_runner,
    opened_place,
    opened_study,
    refuse_queue_options,
)
from cwa_tui.cli.study_register import register_study
from cwa_tui.cli.tracking import Track, track_runs, tracker_of

if TYPE_CHECKING:
    from cwa_engine.named_runners import NamedRunner
    from cwa_engine.runner import Runner
    from cwa_engine.studies.folder import StudyFolder
    from cwa_engine.studies.progress import CellProgress
    from cwa_engine.studies.report import StudyReport
    from cwa_engine.studies.study import Study
    from cwa_engine.tracking.tracker import Tracker

app = typer.Typer()
study = typer.Typer(
    cls=ListByDefault,
    help="Ask a question of many runs: plan them, run each once, and answer in words, tables and figures. "
    "Without a command it lists.",
)
app.add_typer(study, name="study")
study.command("register")(register_study)

Asked = Annotated[
    str | None,
    typer.Argument(
        metavar="QUESTION|FILE.toml",
        help="What is asked, or a file with a study; if left out, the grid is only run.",
        show_default=False,
        autocompletion=completion.study_questions,
    ),
]
StudyId = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Id of a study, or its first or last characters; if left out, the latest.",
        autocompletion=completion.study_ids,
    ),
]
Detached = Annotated[bool, typer.Option("--detach", "-d", help="Queue all cells, print the study's id, and return.")]


@study.command("run", cls=StudyOptions)
def run_study(
    context: typer.Context,
    question: Asked = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--models", "-m", help="The models, also as NAME@REVISION.", autocompletion=completion.models),
    ] = None,
    revisions: Annotated[
        list[str] | None, typer.Option("--revisions", help="Each model at each of these revisions.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seeds", min=0, help="Each run with each of these seeds.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="FIELD=V1,V2",
            help="Runs with each value of an option; + joins values of one run: metric=magnitude+wanda,grad_x_weight.",
            autocompletion=completion.grid_fields,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What you call it.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would take, and run nothing.")] = False,
    detach: Detached = False,
    on: On = None,
    slots: Slots = None,
    gpus: Gpus = None,
    store: Store = None,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Run a model, or many, in every combination of what the grid has, and answer the question.

    What is done already is not run again: the same command goes on where it stopped."""
    tracker = tracker_of(track, detach)
    asked = study_typed(question, context.obj, models or (), revisions or (), seeds or (), grid or (), name)
    options = job_options_of("run", context.obj)
    runner = asked_runner(on, detach, slots=slots, gpus=gpus, store=store)
    refuse_queue_options(runner, context.obj)
    if dry_run:
        _show_plan(asked, runner, as_json)
        return
    from cwa_engine.studies.folder import StudyFolder

    with opened_place(runner, options) as place:
        folder, known = StudyFolder.of(asked, where=place.runner.where)
        if known:
            say(f"{folder.id} asks for the same: it goes on")
        _go_on(folder, place, retry=False, detach=detach, as_json=as_json, tracker=tracker)


@study.command("list")
def list_studies(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to list.")] = 20, as_json: Json = False
) -> None:
    """List studies and how far they are, the latest first."""
    from cwa_engine.studies.folder import StudyFolder
    from cwa_engine.studies.progress import progress_of
    from cwa_tui.cli.study_list import studies_table

    found, damaged = StudyFolder.all_and_damaged()
    with Runners() as runners:
        rows = [(folder, progress_of(folder, runners.of(folder))) for folder in found[:limit]]
    if as_json:
        show({"studies": [_listed(*row) for row in rows], "total": len(found)})
    elif rows:
        show(studies_table(rows))
    else:
        show("no studies yet; `cwtool study run --help` says how to make one")
    for error in damaged:
        say(f"{error.message}; {error.hint}")


@study.command("show")
def show_study(study_id: StudyId = "latest", as_json: Json = False) -> None:
    """Show what a study answers, what would overturn it, its tables, and what went wrong."""
    with opened_study(study_id) as (folder, place):
        _show_report(folder, place.runner, as_json)


@study.command("resume")
def resume_study(
    study_id: StudyId = "latest",
    detach: Detached = False,
    on: On = None,
    slots: Slots = None,
    gpus: Gpus = None,
    as_json: Json = False,
) -> None:
    """Go on with a study: run what is not done, and once more what failed or was cancelled.

    One that runs on Ray goes on where it ran last, unless --on gives another address."""
    asked = asked_runner(on, detach, needs_on=False, slots=slots, gpus=gpus)
    with opened_study(study_id, asked, detach) as (folder, place):
        _go_on(folder, place, retry=True, detach=detach, as_json=as_json)


@study.command("cancel")
def cancel_study(study_id: StudyId = "latest", as_json: Json = False) -> None:
    """Cancel the runs of a study that have not ended."""
    from cwa_engine.studies import running
    from cwa_tui.tables.study import counted

    with opened_study(study_id) as (folder, place):
        progress = running.cancel_study(folder, place.runner)
    if as_json:
        show(_listed(folder, progress))
    else:
        show(f"{folder.id}: {counted(progress)}")
        say(f"`cwtool study resume {folder.id}` goes on with it")


@study.command("export")
def export_study(
    study_id: StudyId = "latest",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="A folder that does not exist yet.")
    ] = "",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="csv, json, parquet, markdown or latex, as in `cwtool export`.",
            autocompletion=completion.one_of(*EXPORTED[:-1]),
        ),
    ] = "csv",
    as_json: Json = False,
) -> None:
    """Write the answer, its tables and the list of its runs into a new folder."""
    from cwa_engine.exchange.writing import checked_export
    from cwa_engine.studies.report import study_report
    from cwa_tui.cli.exported import exported

    if not output:
        raise InvalidInput("no folder is given", hint=f"`cwtool study export {study_id} --output FOLDER`")
    checked = checked_export(form)
    with opened_study(study_id) as (folder, place):
        report = study_report(folder, place.runner)
        if not report.complete:
            say("not all cells have ended: this is the answer so far")
        exported(report, checked, output=output, as_json=as_json)


def _go_on(
    folder: StudyFolder,
    place: Place,
    retry: bool,
    detach: bool,
    as_json: bool,
    tracker: Tracker | None = None,
) -> None:
    """Run what is not done; unless detached, to its end, and show the answer. After Ctrl-C a study of the daemon goes on."""
    from cwa_engine.studies import running
    from cwa_tui.cli.study_show import live_grid

    runner = place.runner
    remember([], [cell.spec.model for cell in folder.cells])
    if place.named and runner.where == folder.where:
        folder.keep_runner(place.named)
    try:
        if detach:
            running.run_study(folder, runner, say, retry=retry, wait=False)
            show({"study": folder.id} if as_json else folder.id)
            if folder.awaits_further:
                say(
                    f"its question asks for further runs when these are done: `{place.cwtool} study resume {folder.id}`"
                )
            return
        say(f"study {folder.id}, {len(folder.cells)} cells")
        with live_grid(stderr(), place) as seen:
            running.run_study(folder, runner, say, retry=retry, show=seen)
    except QueueFull as error:
        hint = f"`cwtool study resume {folder.id}` queues the others when there is room"
        raise QueueFull(f"not all cells of {folder.id} are queued: {error.message}", hint=hint) from error
    except DaemonUnreachable as error:
        hint = f"nothing is lost: `{place.cwtool} study resume {folder.id}` goes on with it"
        if place.named:  # what is to be mended first
            hint = f"{error.hint}; {hint}" if error.hint else hint
        raise type(error)(error.message, hint=hint) from error
    except KeyboardInterrupt:
        _leave(folder, place)
    _show_report(folder, runner, as_json, tracker)


def _show_report(folder: StudyFolder, runner: Runner, as_json: bool, tracker: Tracker | None = None) -> None:
    """Print the answer. Exit code 1 where cells have failed."""
    from cwa_engine.studies.report import study_report
    from cwa_tui.cli.study_show import study_page

    report = study_report(folder, runner)
    if tracker:
        track_runs([run.report for run in report.runs], tracker, folder.id)
    show(_plain(report) if as_json else study_page(report))
    if any(cell.state == "failed" for cell in report.progress):
        say(f"`cwtool study resume {folder.id}` runs once more what failed")
        raise typer.Exit(1)


def _plain(report: StudyReport) -> dict[str, Any]:
    from cwa_engine.rows import to_plain

    tables = {rows.table.name.removesuffix(".csv"): to_plain(rows.rows) for rows in report.tables()}
    return {**report.to_plain(), "tables": tables, "folder": str(report.folder.path)}


def _leave(folder: StudyFolder, place: Place) -> NoReturn:
    cwtool = place.cwtool
    if place.named:
        say(f"\n{folder.id} stops; what is done stays, and what runs is run again.")
    else:
        say(f"\n{folder.id} goes on with what is queued.")
    say(f"  to {'go on with it' if place.named else 'come back'}:  {cwtool} study resume {folder.id}")
    say(f"  to look at it: {cwtool} study show {folder.id}")
    if not place.named:
        say(f"  to cancel it:  {cwtool} study cancel {folder.id}")
    raise typer.Exit(130)


def _listed(folder: StudyFolder, progress: tuple[CellProgress, ...]) -> dict[str, Any]:
    """A study as lists show it, for programs."""
    states = [cell.state for cell in progress]
    return {
        "study": folder.id,
        "question": folder.study.question,
        "name": folder.study.name,
        "created": folder.created,
        "where": folder.where,
        "cells": {state: states.count(state) for state in dict.fromkeys(states)},
    }


def _show_plan(asked: Study, runner: NamedRunner, as_json: bool) -> None:
    from cwa_engine.studies.plan import plan_study
    from cwa_tui.cli.study_list import plan_table, slots_in_words
    from cwa_tui.cli.study_place import where_of

    plan = plan_study(asked, elsewhere=chosen_host() is not None, where=where_of(runner))
    slots = runner.options.get("slots")
    if as_json:
        show({**plan.to_plain(), "slots": slots} if runner.name else plan.to_plain())
    else:
        show(plan_table(plan, slots_in_words(plan, runner.kind, slots) if runner.name else ""))
