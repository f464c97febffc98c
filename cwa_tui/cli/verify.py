"""`cwtool verify`: find the files of a run or a bundle, verify them, and print what was found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

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
from cwa_tui.cli.verified import found_in_words

app = typer.Typer()


@app.command()
def verify(
    run: Annotated[
        str,
        typer.Argument(
            help="Run id, or its first or last characters, a folder with the files of a run, or the file of a bundle.",
            autocompletion=completion.finished_run_ids,
            metavar="RUN|FILE.zip",
        ),
    ] = "latest",
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="The run's fingerprint as published, which `cwtool results show` prints; of a bundle its SHA-256.",
            metavar="SHA256",
        ),
    ] = None,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Of a bundle: also run it again, and compare the tables byte for byte.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="With --rerun: where the model is on this machine.", autocompletion=completion.models),
    ] = None,
    data_file: Annotated[
        str | None, typer.Option(help="With --rerun: where the texts are on this machine.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the files of a run or a bundle, and recompute figures from tables. Exit code 1 if anything does not agree."""
    path = user_path(run, "the run")
    if run.endswith(".zip") or (path.is_file() and run != "latest"):
        from cwa_tui.cli.bundle_verify import verify_file

        verify_file(path, _sha256(fingerprint), rerun, model, data_file, as_json)
        return
    if rerun or model or data_file:
        raise InvalidInput(
            "--rerun, --model and --data-file are for bundles", hint=f"`cwtool rerun {run}` runs it again and compares"
        )
    found = verified(run, fingerprint)
    show(as_plain(found) if as_json else found_in_words(found))
    if not found.agrees:
        raise typer.Exit(1)


def _sha256(fingerprint: str | None) -> str | None:
    """In small letters. Raises InvalidInput for what is none."""
    if fingerprint is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", fingerprint):
        raise InvalidInput(
            "--fingerprint is no SHA-256", hint=f"64 hexadecimal digits, as `sha256sum {SUMS}` gives them"
        )
    return fingerprint and fingerprint.lower()


def verified(run: str, fingerprint: str | None) -> Verification:
    """Verify a folder, or a run that the daemon knows. A run of another machine is copied here first. Raises NotFound."""
    given = _sha256(fingerprint)
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
