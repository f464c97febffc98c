"""A study as a terminal shows it: its plan, its grid while it runs, and its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cwa_engine.base.errors import CwaError, DaemonUnreachable
from cwa_engine.records.run_summary import RunSummary
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.registration import standing
from cwa_engine.studies.registry import STUDY_QUESTIONS
from cwa_engine.studies.report import StudyReport
from cwa_tui.cli.lines import as_lines
from cwa_tui.store.study_stages import StageOf, StagesFollowed
from cwa_tui.tables.study import LEGEND, counted, failures, study_grid
from cwa_tui.tables.study_answer import answer_table
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.runner import Runner
    from cwa_tui.cli.study_place import Place

_OTHER_LINES = 6  # of a terminal, beside the rows of the grid
MOST_ROWS = 30  # of a table below an answer; a trajectory has thousands of weights


class Show(Protocol):
    """Called with all cells whenever one has gone on."""

    def __call__(self, progress: tuple[CellProgress, ...]) -> None: ...


@contextmanager
def live_grid(console: Console, place: Place) -> Iterator[Show]:
    """Show how far a study is: as a grid on a terminal, else a line for each cell that has come to another state."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    from rich.live import Live  # plain lines need none of it

    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        stage_of = _stage_of_job(place.client) if place.client else StagesFollowed(place.runner)
        yield _Grid(place.runner, stage_of, console, lambda shown: live.update(shown, refresh=True))


class _Lines:
    """A line for each cell that has ended or begun since the last look."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: Mapping[int, str] = {}

    def __call__(self, progress: tuple[CellProgress, ...]) -> None:
        for entry in progress:
            if entry.state != self._before.get(entry.cell.number) and (entry.ended or entry.state == "running"):
                why = f": {entry.error.message}" if entry.error else ""
                reused = ", by an earlier run" if entry.reused and entry.state == "done" else ""
                line = f"{fmt.signed(entry.state)}{reused}  {entry.cell.number} {entry.cell.label}{why}  {entry.run_id}"
                self._console.print(line.rstrip(), highlight=False, soft_wrap=True, markup=False)
        self._before = {entry.cell.number: entry.state for entry in progress}


class _Grid:
    """The grid with what each run has found, as far as it has room."""

    def __init__(self, runner: Runner, stage_of: StageOf, console: Console, update: Any) -> None:
        self._runner, self._stage_of, self._console, self._update = runner, stage_of, console, update
        self._summaries: dict[str, RunSummary] = {}
        self._unread: set[str] = set()

    def __call__(self, progress: tuple[CellProgress, ...]) -> None:
        self._read_new(progress)
        stages = {entry.run_id: self._stage_of(entry.run_id) for entry in progress if entry.state == "running"}
        shown = _around(progress, max(1, self._console.height - _OTHER_LINES))
        table = as_lines(study_grid(shown, self._summaries, stages))
        self._update(Group(table, words(counted(progress), "dim")))

    def _read_new(self, progress: tuple[CellProgress, ...]) -> None:
        for entry in progress:
            if entry.state == "done" and entry.run_id not in self._summaries.keys() | self._unread:
                try:
                    self._summaries[entry.run_id] = self._runner.attach(entry.run_id).report().summary
                except DaemonUnreachable:
                    raise
                except CwaError:  # the answer says what is wrong with it
                    self._unread.add(entry.run_id)


def _stage_of_job(client: Client) -> StageOf:
    """The daemon knows how far each job is."""
    return lambda run_id: client.job(run_id).progress


def _around(progress: tuple[CellProgress, ...], room: int) -> tuple[CellProgress, ...]:
    """As many cells as there is room for, with the first that has not ended among them."""
    first = next((place for place, entry in enumerate(progress) if not entry.ended), len(progress))
    start = max(0, min(first - room // 2, len(progress) - room))
    return progress[start : start + room]


def study_page(report: StudyReport) -> RenderableType:
    """The answer in words, what would overturn it, the tables, and what went wrong."""
    summaries = {run.report.run_id: run.report.summary for run in report.runs}
    grid = as_lines(study_grid(report.progress, summaries, {}), LEGEND if summaries else "")
    parts: list[RenderableType] = [words(_heading(report.folder)), "", *_answer(report), grid]
    for table in (rows for rows in report.answer.tables if rows.rows) if report.answer else ():
        view = answer_table(table)
        more = len(view.rows) - MOST_ROWS
        note = f"and {more:,} more rows: `cwtool study export {report.folder.id}` writes all" if more > 0 else ""
        parts += ["", as_lines(replace(view, rows=view.rows[:MOST_ROWS]), note)]
    if wrong := failures(report.progress):
        parts += ["", Text("not done", "bold"), *(words(f"  {line}") for line in wrong)]
    return Group(*parts)


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _heading(folder: StudyFolder) -> str:
    study = folder.study
    question = STUDY_QUESTIONS.get(study.question)
    asks = f"{study.question}: {question.asks}" if question else study.question or "a grid without a question"
    name = f" · {study.name}" if study.name else ""
    return f"{folder.id}{name} · {len(folder.cells)} cells · {fmt.ago(folder.created)}\n{asks}"


def _answer(report: StudyReport) -> Iterator[RenderableType]:
    """The answer in words; nothing for a grid without a question."""
    if not report.complete:
        further = "; its question may ask for further runs" if report.folder.awaits_further else ""
        yield words(f"So far: {counted(report.progress)}{further}.", "yellow")
    if (answer := report.answer) is None:
        return
    yield words(answer.sentence, "bold")
    for finding in answer.findings:
        yield ""
        yield words(f"- {finding.sentence}")
        yield words(f"  Overturned by: {finding.overturned_by}", "dim")
    if answer.refused:
        yield ""
        yield Text("not concluded", "bold")
    for refused in answer.refused:
        yield words(f"- {refused}")
    if answer.rule:
        yield ""
        yield words(f"Rule: {answer.rule}", "dim")
    yield words(f"{_capital(standing(report.folder, report.runs).sentence)}.", "dim")
    yield ""
