"""`cwtool rerun`: repeat a run from its manifest, and compare what the two runs wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.checksums import Check
from cwa_engine.rows import to_plain
from cwa_engine.spec import RunSpec, parse_spec
from cwa_tui.cli import completion
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.following import follow
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Detach, FinishedRunId, Json
from cwa_tui.cli.remembered import remember
from cwa_tui.text.visible import words

app = typer.Typer()

_CIRCUMSTANCES = ("model", "data", "versions", "machine")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs wrote. They agree if all tables do and no file of either was altered since it was written."""

    first: str  # run id
    again: str
    agree: bool
    tables: dict[str, bool]  # name -> whether both runs have the same bytes of it now
    altered: dict[str, dict[str, str]]  # run id -> file -> how it differs from what the run wrote
    as_first_written: dict[str, bool]  # table -> whether the second run wrote what the first one did
    changed: list[str]  # of model, data, versions and machine, and the rule by which draws are measured


@app.command()
def rerun(
    run_id: FinishedRunId = "latest",
    detach: Detach = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Run nothing; compare with this run, which --detach has begun.",
            metavar="RUN_ID",
            autocompletion=completion.run_ids,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Repeat a run from its manifest, and compare the tables of both runs byte for byte. Exit code 1 if they differ."""
    from cwa_daemon.protocol import JobOptions

    if detach and against:
        raise InvalidInput("--against compares with a run that is there, --detach begins one", hint="give one of them")
    with connect() as client:
        first = client.manifest(run_id)
        if against:
            again = client.job(against).run_id
        else:
            again = client.submit_again(repeated(first), command_typed(), JobOptions(no_cache=True))
            remember([(again, "run")])
        if detach:
            show({"run_id": again, "first": first["run_id"]} if as_json else again)
            say(f"when it is done: `cwtool rerun {first['run_id']} --against {again}` compares the two")
            return
        follow(client, again)
        checks = (client.check(one).check for one in (first["run_id"], again))
        found = compare(first, client.manifest(again), *checks)
    show(to_plain(found) if as_json else comparison(found))
    if not found.agree:
        raise typer.Exit(1)


def repeated(manifest: JsonMap) -> RunSpec:
    """The spec of the run, with the model revision that it used and without its output folder."""
    revision = manifest["model"]["revision"] or manifest["spec"]["revision"]
    return parse_spec({**manifest["spec"], "revision": revision, "output": None})


def compare(before: JsonMap, after: JsonMap, first: Check, again: Check) -> Comparison:
    """Compare two runs by their manifests, `before` and `after`, and by the checks of their files as they are now."""
    names = sorted({*before["tables"], *after["tables"]})
    tables = {name: first.hashes.get(name) == again.hashes.get(name) is not None for name in names}
    changed = [
        f"{part} {name}: {before[part].get(name)} then, {after[part].get(name)} now"
        for part in _CIRCUMSTANCES
        for name in before[part]
        if before[part].get(name) != after[part].get(name)
    ]
    then, now = (manifest.get("control_rule", "sample") for manifest in (before, after))  # no early manifest names it
    if then != now:
        changed.append(f"rule by which draws of controls are measured: {then} then, {now} now")
    altered = {before["run_id"]: first.altered, after["run_id"]: again.altered}
    return Comparison(
        first=before["run_id"],
        again=after["run_id"],
        agree=all(tables.values()) and not any(altered.values()),
        tables=tables,
        altered={run_id: files for run_id, files in altered.items() if files},
        as_first_written={name: again.hashes.get(name) == before["tables"].get(name) for name in names},
        changed=changed,
    )


def comparison(found: Comparison) -> Text:
    """A comparison as text."""
    lines = [f"{name}: {'the same bytes' if same else 'DIFFERENT'}" for name, same in found.tables.items()]
    for run_id, files in found.altered.items():
        for name, what in files.items():
            again = name in found.tables and found.as_first_written[name]
            lines.append(f"{name} of {run_id} is {what}{'; the bytes it had at first came out again' if again else ''}")
    lines += [f"changed since: {change}" for change in found.changed]
    verdict = "agree, byte for byte" if found.agree else "do NOT agree"
    return words("\n".join([*lines, f"{found.first} and {found.again} {verdict}"]), overflow="fold")
