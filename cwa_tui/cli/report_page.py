"""`cwtool report`: a page of a run, a study or a comparison, and its figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import OutputError, OutputTaken
from cwa_engine.base.files import user_path, write_whole
from cwa_tui.cli import completion
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json
from cwa_tui.cli.sources import Opened, opened_source

if TYPE_CHECKING:
    pass

app = typer.Typer()


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run or a study, by its id or the first or last characters of it, or a folder with its files; two to four "
            "runs for a comparison. If left out, the latest finished run.",
            show_default=False,
            metavar="RUN|STUDY|RUN RUN...",
            autocompletion=completion.reported_ids,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="The page; if left out, one named after the id, here.", metavar="FILE.html"
        ),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option("--figures", help="Write every figure to this folder too, and its data as CSV.", metavar="FOLDER"),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="Of the figures: svg, pdf, png, or several with commas.", metavar="FORMATS"
        ),
    ] = "svg",
    width: Annotated[
        str,
        typer.Option(
            help="Of the figures: one-column (3.25 inches) or two-column (6.75).",
            autocompletion=completion.one_of("one-column", "two-column"),
        ),
    ] = "one-column",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is no page of the same.")] = False,
    as_json: Json = False,
) -> None:
    """Write a page that shows what was found: question and answer, figures, tables, method, limits, how to repeat it.

    It is one file that loads nothing: it works without a network, on a phone and on paper.
    """
    from cwa_engine.reports.page import page_of, page_subject

    folder = user_path(figures, "--figures") if figures is not None else None
    given = user_path(output, "--output") if output is not None else None
    with opened_source(runs or ["latest"]) as opened:
        path = given or Path(f"{opened.name}.html").absolute()
        page = page_of(opened.report, opened.of).encode("utf-8")
        _check_free(path, page_subject(page), force)
        drawn = _write_figures(opened, folder, form.split(","), width) if folder else []
    _write(path, page)
    if as_json:
        show({"page": str(path), "bytes": len(page), "figures": [str(each) for each in drawn]})
        return
    show(str(path))
    if folder:
        say(f"{len(drawn)} files of figures in {folder}")


def _check_free(path: Path, subject: str | None, force: bool) -> None:
    """Raises OutputTaken for a file that is not an earlier page of the same, OutputError for a folder."""
    from cwa_engine.reports.page import page_subject

    if path.is_dir():
        raise OutputError(f"--output {path} is a folder", hint="give a file: --output page.html")
    if force or not path.exists():
        return
    try:
        with path.open("rb") as file:
            there = page_subject(file.read(8000))
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}", hint="give --output another file") from error
    if there != subject:
        what = f"the page of {there}" if there else "no page of cwtool"
        raise OutputTaken(f"{path} is {what}", hint="give --output another file, or --force to replace it")


def _write_figures(opened: Opened, folder: Path, formats: list[str], width: str) -> list[Path]:
    from cwa_engine.figures.registry import figures_of
    from cwa_engine.reports.drawing import write_figure

    written = []
    for figure in figures_of(opened.report, opened.of):
        written += write_figure(figure, folder, [each.strip() for each in formats], width)  # type: ignore[arg-type]
    return written


def _write(path: Path, page: bytes) -> None:
    try:
        write_whole(path, page)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", hint="give --output a file in a folder you may write"
        ) from error
