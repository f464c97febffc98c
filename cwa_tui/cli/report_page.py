"""`cwtool report`: a page of a run, a study or a comparison, and its figures as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwa_engine.base.errors import InvalidInput, NotFound, OutputError, OutputTaken
from cwa_engine.base.files import user_path, write_whole
from cwa_tui.cli import completion
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwa_engine.figures.figure import Source
    from cwa_engine.records.run_report import RunReport
    from cwa_engine.studies.folder import StudyFolder
    from cwa_engine.studies.report import StudyReport

app = typer.Typer()


@dataclass(frozen=True)
class _Subject:
    """What a page is about: a report and what makes a page of it."""

    name: str  # of the file, unless another is given
    source: Any
    of: Source
    page: Callable[[Any], str]


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
    from cwa_engine.reports.page import page_subject

    folder = user_path(figures, "--figures") if figures is not None else None
    given = user_path(output, "--output") if output is not None else None
    with _subject(runs or ["latest"]) as subject:
        path = given or Path(f"{subject.name}.html").absolute()
        page = subject.page(subject.source).encode("utf-8")
        _check_free(path, page_subject(page), force)
        drawn = _write_figures(subject, folder, form.split(","), width) if folder else []
    _write(path, page)
    if as_json:
        show({"page": str(path), "bytes": len(page), "figures": [str(each) for each in drawn]})
        return
    show(str(path))
    if folder:
        say(f"{len(drawn)} files of figures in {folder}")


@contextmanager
def _subject(named: list[str]) -> Iterator[_Subject]:
    """What is named. Files of runs on another machine are here for as long as it is open."""
    from cwa_engine.reports import page

    with ExitStack() as stack:
        try:
            study = _study_folder(named[0]) if len(named) == 1 else None
            reports = [] if study else [stack.enter_context(_run(name)) for name in named]
        except NotFound as error:
            study, reports = _study_that_begins(named, error), []
        if study:
            yield _Subject(study.id, _study_report(study, stack), "study", page.study_page)
        elif len(reports) == 1:
            yield _Subject(reports[0].run_id, reports[0], "run", page.run_page)
        else:
            from cwa_engine.records.comparison import compare

            name = "-".join(["comparison", *(each.run_id.rpartition("-")[2] for each in reports)])
            yield _Subject(name, compare(*reports), "comparison", page.comparison_page)


def _study_folder(named: str) -> StudyFolder | None:
    """The study of that folder, or whose id is this or ends so; "latest" is a run."""
    from cwa_engine.studies.folder import LATEST, STUDY, StudyFolder

    if _is_folder(named):
        path = user_path(named, "the folder")
        return StudyFolder.at(path) if (path / STUDY).exists() else None
    try:
        found = None if named == LATEST else StudyFolder.open(named)
    except (NotFound, InvalidInput):
        return None
    return found if found and (found.id == named or found.id.endswith(f"-{named}")) else None


def _study_that_begins(named: list[str], error: NotFound) -> StudyFolder:
    """The study whose id begins like what is no run. Raises `error` where there is none."""
    from cwa_engine.studies.folder import LATEST, StudyFolder

    if len(named) > 1 or named[0] == LATEST or _is_folder(named[0]):
        raise error
    try:
        return StudyFolder.open(named[0])
    except NotFound:
        hint = error.hint or "`cwtool results` lists finished runs, `cwtool study` studies"
        raise NotFound(error.message, hint=hint) from error


def _study_report(folder: StudyFolder, stack: ExitStack) -> StudyReport:
    from cwa_daemon.client import DaemonRunner
    from cwa_engine.studies.report import study_report

    return study_report(folder, DaemonRunner(stack.enter_context(connect()), command_typed()))


@contextmanager
def _run(named: str) -> Iterator[RunReport]:
    from cwa_engine.records.run_report import open_run
    from cwa_tui.cli.exported import opened

    if _is_folder(named):
        yield open_run(named)
        return
    with connect() as client, opened(client, named) as found:
        yield found


def _is_folder(named: str) -> bool:
    return "/" in named or Path(named).is_dir()


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


def _write_figures(subject: _Subject, folder: Path, formats: list[str], width: str) -> list[Path]:
    from cwa_engine.figures.registry import figures_of
    from cwa_engine.reports.drawing import write_figure

    written = []
    for figure in figures_of(subject.source, subject.of):
        written += write_figure(figure, folder, [each.strip() for each in formats], width)  # type: ignore[arg-type]
    return written


def _write(path: Path, page: bytes) -> None:
    try:
        write_whole(path, page)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", hint="give --output a file in a folder you may write"
        ) from error
