"""`cwtool verify FILE.zip`: whether a bundle holds, and whether running it again gives the same tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.base.plain import JsonMap
from cwa_engine.bundles.verifying import BundleVerification, opened, verify_bundle
from cwa_engine.records.checksums import check_run
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import to_plain
from cwa_engine.spec import RunSpec
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.output import say, show
from cwa_tui.cli.rerun import Comparison, compare, comparison, repeated
from cwa_tui.cli.verified import MOST_SHOWN, lines_of
from cwa_tui.text.visible import words

if TYPE_CHECKING:
    from cwa_daemon.client import Client


def verify_file(
    path: Path, sha256: str | None, rerun: bool, model: str | None, data_file: str | None, as_json: bool
) -> None:
    """Verify a bundle, and print what was found. Exit code 1 if anything does not agree."""
    if (model or data_file) and not rerun:
        raise InvalidInput("--model and --data-file are for --rerun", hint="add --rerun")
    found = verify_bundle(path, sha256)
    again = _run_again(path, model, data_file) if rerun and found.agrees else []
    if rerun and not found.agrees:
        say("it is not run again: the bundle itself does not agree")
    if as_json:
        reruns = {"reruns": to_plain(again)} if rerun else {}
        show({"agrees": found.agrees and all(each.agree for each in again), **_plain(found), **reruns})
    else:
        show(words("\n".join(_lines(found)), overflow="fold"))
        for each in again:
            show(comparison(each))
    if not found.agrees or not all(each.agree for each in again):
        raise typer.Exit(1)


def _plain(found: BundleVerification) -> JsonMap:
    runs = [{"agrees": run.agrees, **to_plain(run)} for run in found.runs]
    return {**to_plain(found), "runs": runs}


def _lines(found: BundleVerification) -> Iterator[str]:
    name = Path(found.path).name
    if about := found.about:
        yield f"{name}: {about.kind} {about.id}, packed by cwtool {about.cwtool}"
    yield f"SHA-256 {found.sha256}"
    for file, what in found.altered.items():
        yield f"ALTERED: {file} is {what}"
    for run in found.runs:
        yield ""
        yield from lines_of(run)
    yield ""
    if found.compared:
        yield f"{found.compared:,} values and files were made anew from the reports, {len(found.disagreements)} disagree"
    for entry in found.disagreements[:MOST_SHOWN]:
        yield f"DISAGREES: {entry.where}: it says {entry.said}, made anew {entry.found}"
    if len(found.disagreements) > MOST_SHOWN:
        yield f"and {len(found.disagreements) - MOST_SHOWN} more; --json has all"
    yield from (f"not compared: {what}" for what in found.unknown)
    yield f"{name} is {'sound as far as its files tell' if found.agrees else 'NOT sound'}"


def _run_again(path: Path, model: str | None, data_file: str | None) -> list[Comparison]:
    """Every run of a sound bundle once more, beside what the bundle has of it."""
    from cwa_daemon.protocol import JobOptions

    with opened(path) as contents, connect() as client:
        for given, option, field in ((model, "--model", "model"), (data_file, "--data-file", "data_file")):
            named = {getattr(report.spec, field) for report in contents.reports}
            if given is not None and len(named) > 1:
                raise InvalidInput(
                    f"{option} gives one place, and the runs of {path.name} have {len(named)}",
                    hint="unpack it, and run each again by its own command line",
                )
        specs = [_spec(report, model, data_file) for report in contents.reports]
        ids = [client.submit(spec, command_typed(), JobOptions(no_cache=True)) for spec in specs]
        return [_beside(client, report, run_id) for report, run_id in zip(contents.reports, ids, strict=True)]


def _spec(report: RunReport, model: str | None, data_file: str | None) -> RunSpec:
    """The spec of a run on this machine. Raises InvalidInput where it does not say where model or texts are here."""
    spec = repeated(json.loads(report.files.read("manifest.json")))
    if model is None and report.model.kind != "hub":
        raise InvalidInput(
            f"the model of {report.run_id} was '{spec.model}', a {report.model.kind} of another machine",
            hint="give --model with the place of the same files here",
        )
    if data_file is None and spec.data_file is not None:
        raise InvalidInput(
            f"the texts of {report.run_id} were '{spec.data_file}', a file of another machine",
            hint=f"give --data-file with the file here; SHA-256 of its texts {report.texts.sha256}",
        )
    if spec.task_path is not None:
        raise InvalidInput(
            f"the tasks of {report.run_id} were in '{spec.task_path}', a folder of another machine",
            hint="its tables are verified without --rerun; with the task files here, `cwtool run` measures them again",
        )
    here: JsonMap = {"revision": None if model else spec.revision, "model": model or spec.model}
    if data_file is not None and spec.data_file is not None:
        here |= {"data_file": user_path(data_file, "--data-file"), "data_name": None}
    return RunSpec.model_validate({**spec.model_dump(), **here})


def _beside(client: Client, report: RunReport, run_id: str) -> Comparison:
    from cwa_tui.cli.following import follow

    say(f"{report.run_id} runs again as {run_id}")
    follow(client, run_id)
    assert report.folder is not None
    before, after = json.loads(report.files.read("manifest.json")), client.manifest(run_id)
    return compare(before, after, check_run(report.folder, report.fingerprint), client.check(run_id).check)
