"""`cwtool figures`: the figures of a run, a study or a comparison, drawn in cells of the terminal or written to files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwa_engine.base.errors import InvalidInput, NotFound, OutputError, OutputTaken, did_you_mean
from cwa_engine.base.files import user_path
from cwa_tui.cli import completion
from cwa_tui.cli.lines import NO_LIMIT, line_width
from cwa_tui.cli.output import say, show, show_exactly
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from rich.text import Text

    from cwa_engine.base.plain import JsonMap
    from cwa_engine.figures.figure import Figure

app = typer.Typer()
PIPE_WIDTH = 100  # cells, where no terminal says how wide it is
LEAST_HEIGHT, MOST_HEIGHT = 14, 30  # lines of a chart
_OTHER_LINES = 8  # of a terminal, beside the chart
_ENDINGS = ("svg", "pdf", "png")


@app.command()
def figures(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|STUDY",
            help="Id of a finished run or a study, or its first or last characters, or a folder with the files of a run; "
            "if left out, the latest finished run.",
            autocompletion=completion.reported_ids,
        ),
    ] = "latest",
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="The figure to draw, or how the names of several begin; if left out, all are listed.",
            show_default=False,
        ),
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="RUN",
            help="Compare with this run, and show the figures of the comparison; up to three.",
            autocompletion=completion.finished_run_ids,
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table of the figure as CSV.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the figure to FILE.svg, .pdf or .png, and its table to FILE.csv beside it.",
        ),
    ] = None,
    width: Annotated[
        str,
        typer.Option(
            "--width",
            help="How wide --output is: one-column or two-column of a paper.",
            autocompletion=completion.one_of("one-column", "two-column"),
        ),
    ] = "one-column",
    force: Annotated[bool, typer.Option("--force", help="Replace the files of --output.")] = False,
    as_json: Json = False,
) -> None:
    """List the figures of a run or a study, or draw one in the terminal."""
    if sum((as_csv, as_json, output is not None)) > 1:
        raise InvalidInput("--csv, --json and --output are three ways out", hint="give one of them")
    if name is None and (as_csv or output):
        raise InvalidInput("no figure is named", hint=f"`cwtool figures {source}` lists them")
    from cwa_engine.figures.registry import figures_of
    from cwa_tui.cli.sources import opened_source

    with opened_source([source, *(others or ())]) as opened:
        found = figures_of(opened.report, opened.of)
        if name is None:
            _list(found, opened.name, as_json)
            return
        chosen = _chosen(found, name, opened.name)
        if as_csv:
            figure = _only(chosen, name)
            show_exactly(figure.table.table.to_bytes(figure.table.rows).decode())
        elif output:
            for path in _write(_only(chosen, name), user_path(output, "--output"), width, force):
                show(str(path))
        elif as_json:
            show({"figures": [_plain(figure) for figure in chosen]})
        else:
            _draw(chosen)


def _list(found: Sequence[Figure], of: str, as_json: bool) -> None:
    from cwa_tui.cli.lines import Field, LineTable, Row

    if as_json:
        listed = [{"name": f.name, "title": f.title, "rows": len(f.table.rows)} for f in found]
        show({"figures": listed, "of": of})
    elif found:
        rows = [
            Row({"figure": figure.name, "rows": f"{len(figure.table.rows):,}", "shows": figure.title})
            for figure in found
        ]
        show(LineTable([Field("figure"), Field("rows", right=True), Field("shows", 20)], rows))
        say(f"`cwtool figures {of} NAME` draws one" if " " not in of else "give the NAME of one to draw it")
    else:
        show(f"{of} has measured nothing that a figure shows")


def _chosen(found: Sequence[Figure], name: str, of: str) -> list[Figure]:
    """The figure of that name, or all whose names begin so."""
    chosen = [figure for figure in found if figure.name == name] or [f for f in found if f.name.startswith(name)]
    if not chosen:
        names = [figure.name for figure in found]
        near = did_you_mean(name, names)
        raise NotFound(f"{of} has no figure '{name}'", hint=near or f"it has {', '.join(names) or 'none'}")
    return chosen


def _only(chosen: Sequence[Figure], name: str) -> Figure:
    if len(chosen) > 1:
        names = ", ".join(figure.name for figure in chosen)
        raise InvalidInput(f"the names of {len(chosen)} figures begin with '{name}'", hint=f"give one of: {names}")
    return chosen[0]


def _draw(chosen: Sequence[Figure]) -> None:
    from cwa_tui.charts.drawing import whole
    from cwa_tui.cli.terminal import Terminal

    room = shutil.get_terminal_size()
    wide = line_width() or room.columns
    wide = PIPE_WIDTH if wide == NO_LIMIT else wide
    height = max(LEAST_HEIGHT, min(MOST_HEIGHT, room.lines - _OTHER_LINES, wide // 3))
    console = Terminal(width=wide)
    for place, figure in enumerate(chosen):
        if place:
            console.print()
        for part in whole(figure, wide, height):
            console.print(_drawable(part, console.encoding), highlight=False)


def _drawable(part: Text, encoding: str) -> Text:
    """The same in characters that standard output can hold, each as wide as before."""
    if encoding.lower().startswith("utf"):
        return part
    from cwa_tui.terminal.characters import in_ascii  # Textual comes with it

    drawn = part.copy()
    drawn.plain = in_ascii(part.plain)
    return drawn


def _plain(figure: Figure) -> JsonMap:
    """The figure for programs: what it shows, what stands along its axes, and its table."""
    from cwa_engine.rows import to_plain

    axes: dict[str, Any] = {"x": figure.x, "y": figure.y, "colour": figure.colour}
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        **{name: to_plain(axis) for name, axis in axes.items()},
        "rows": to_plain(list(figure.table.rows)),
    }


def _write(figure: Figure, path: Path, width: str, force: bool) -> list[Path]:
    """The picture under the name given, and its table beside it. Nothing is replaced unless asked for."""
    from cwa_engine.base.files import fetch_folder
    from cwa_engine.reports.drawing import WIDTHS, write_figure

    ending = path.suffix.removeprefix(".").lower()
    if ending not in _ENDINGS:
        raise InvalidInput(f"'{path}' says no format", hint=f"end it in {', '.join('.' + name for name in _ENDINGS)}")
    known = next((one for one in WIDTHS if one == width), None)
    if known is None:
        raise InvalidInput(f"a figure cannot be '{width}' wide", hint=f"give one of: {', '.join(WIDTHS)}")
    targets = {ending: path, "csv": path.with_suffix(".csv")}
    if taken := next((target for target in targets.values() if target.exists() and not force), None):
        raise OutputTaken(f"{taken} exists", hint="--force replaces it")
    with fetch_folder() as scratch:
        written = {
            made.suffix.removeprefix("."): made for made in write_figure(figure, Path(scratch), (ending,), known)
        }
        try:
            return [Path(shutil.copyfile(written[kind], target)) for kind, target in targets.items()]
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror}", hint="give a folder you may write"
            ) from error
