"""`cwtool verify`: find the files of a run, verify them, and print what was found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import fetch_folder, user_path
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.checksums import MANIFEST, SUMS
from cwa_engine.records.verification import Verification
from cwa_engine.records.verification import verify as verify_folder
from cwa_engine.rows import to_plain
from cwa_tui.cli import completion
from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Json
from cwa_tui.text.visible import words

app = typer.Typer()

MOST_SHOWN = 30  # disagreements; --json has all


@app.command()
def verify(
    run: Annotated[
        str,
        typer.Argument(
            help="Run id, or its first or last characters, or a folder with the files of a run.",
            autocompletion=completion.finished_run_ids,
        ),
    ] = "latest",
    fingerprint: Annotated[
        str | None, typer.Option(help="The run's fingerprint as published; `cwtool results show` prints it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run's files, and recompute its figures from its tables. Exit code 1 if anything does not agree."""
    found = verified(run, fingerprint)
    show(as_plain(found) if as_json else found_in_words(found))
    if not found.agrees:
        raise typer.Exit(1)


def verified(run: str, fingerprint: str | None) -> Verification:
    """Verify a folder, or a run that the daemon knows. A run of another machine is copied here first. Raises NotFound."""
    if fingerprint is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", fingerprint):
        raise InvalidInput(
            "--fingerprint is no SHA-256", hint=f"64 hexadecimal digits, as `sha256sum {SUMS}` gives them"
        )
    given = fingerprint and fingerprint.lower()
    folder = user_path(run, "the run")
    if "/" in run or (folder / MANIFEST).is_file():
        return verify_folder(folder, given)
    with connect() as client:
        if not client.host:
            files = client.check(run)
            return verify_folder(files.folder, given or files.fingerprint)
        with fetch_folder() as scratch:
            run_id, known = client.download(run, Path(scratch))
            return replace(verify_folder(Path(scratch), given or known), folder=f"{client.host}:{run_id}")


def as_plain(found: Verification) -> JsonMap:
    """The verification as `--json` prints it."""
    return {"agrees": found.agrees, **to_plain(found)}


def found_in_words(found: Verification) -> Text:
    """What was verified, what does not agree, and what the files do not say."""
    return words("\n".join(_lines(found)), overflow="fold")


def _lines(found: Verification) -> Iterator[str]:
    yield f"{found.run_id}, written by cwtool {found.version}"
    check = found.check
    yield f"{len(check.sound)} files are as the run wrote them"
    for name, what in check.altered.items():
        yield f"ALTERED: {name} is {what}"
    if check.unchecked:
        yield f"{', '.join(check.unchecked)} cannot be checked: an earlier version of cwtool wrote no hash of it"
    if check.fingerprint:
        outside = (
            "as the job database or you have it" if check.known and SUMS not in check.altered else "of these files"
        )
        yield f"fingerprint {check.fingerprint}, {outside}"
    yield f"{found.compared:,} figures were compared with what the tables give, {len(found.disagreements)} disagree"
    for entry in found.disagreements[:MOST_SHOWN]:
        yield f"DISAGREES: {entry.where}: it says {entry.said}, recomputed {entry.found}"
    if len(found.disagreements) > MOST_SHOWN:
        yield f"and {len(found.disagreements) - MOST_SHOWN} more; --json has all"
    for reason in found.unreadable:
        yield f"CANNOT BE READ: {reason}"
    yield from (f"the files do not say: {what}" for what in found.unknown)
    yield f"{found.run_id} is {'sound as far as its files tell' if found.agrees else 'NOT sound'}"
