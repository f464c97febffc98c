"""`cwtool bundle`: a run or a study in one file, for those who are to check it; uploaded only when that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.base.plain import JsonMap
from cwa_tui.cli import completion
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

if TYPE_CHECKING:
    from cwa_engine.bundles.packing import PackedBundle

app = typer.Typer()


@app.command()
def bundle(
    source: Annotated[
        str,
        typer.Argument(
            help="Run id or study id, or its first or last characters, or a folder with the files of a run.",
            autocompletion=completion.finished_run_ids,
            metavar="RUN|STUDY",
        ),
    ] = "latest",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE.zip", help="The file to write; by default ID.zip in this folder."),
    ] = None,
    keep_paths: Annotated[
        bool,
        typer.Option(
            "--keep-paths", help="Leave the files as they are, with the folders of this machine that they name."
        ),
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME", help="Upload it to the Hub as this data set, which is made if it is not there."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: make a data set that others cannot see.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Pack a run or a study into one file that `cwtool verify` checks on any machine.

    In it are the files of all runs, the tables behind every figure, a methods paragraph, what cannot be said, and which figure
    and which rows of which file every statement rests on. Folders of this machine are cut out."""
    from cwa_engine.bundles.packing import pack
    from cwa_engine.bundles.upload import checked_repo, upload
    from cwa_engine.studies.report import StudyReport
    from cwa_tui.cli.sources import opened_report

    if private and not push:
        raise InvalidInput("--private is for --push", hint="add --push USER/NAME")
    repo = checked_repo(push) if push else None
    with opened_report(source) as report:
        name = report.folder.id if isinstance(report, StudyReport) else report.run_id
        if isinstance(report, StudyReport) and not report.complete:
            say("not all cells have ended: this is the answer so far")
        packed = pack(report, user_path(output or f"{name}.zip", "--output"), keep_paths)
    address = upload(packed, repo, private) if repo else None
    show(_plain(packed, address) if as_json else _in_words(packed, address))


def _plain(packed: PackedBundle, address: str | None) -> JsonMap:
    from cwa_engine.rows import to_plain

    return {
        "path": str(packed.path),
        "sha256": packed.sha256,
        "size_bytes": packed.size_bytes,
        "bundle": to_plain(packed.about),
        "address": address,
    }


def _in_words(packed: PackedBundle, address: str | None) -> Text:
    about = packed.about
    runs = f"{len(about.runs)} run{'s' * (len(about.runs) != 1)}"
    lines = [
        f"{packed.path}",
        f"{about.kind} {about.id}, {runs}, {fmt.size(packed.size_bytes)}",
        f"SHA-256 {packed.sha256}",
    ]
    if cut := sum(bool(run.rewritten) for run in about.runs):
        lines.append(f"folders of this machine were cut out of {cut} of them; --keep-paths leaves them in")
    lines += [f"left out: {name}" for name in about.left_out]
    if address:
        lines.append(f"uploaded to {address}")
    lines.append(f"to check it anywhere: cwtool verify {packed.path.name} --fingerprint {packed.sha256}")
    return words("\n".join(lines), overflow="fold")
