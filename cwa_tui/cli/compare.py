"""`cwtool compare`: finished runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cwa_daemon.client import Client
    from cwa_engine.records.compared import Comparison
    from cwa_engine.records.run_report import RunReport
    from cwa_tui.columns import Column
    from cwa_tui.comparison_view import ViewTable
    from cwa_tui.rows import TableRow

app = typer.Typer()
Runs = Annotated[
    list[str],
    typer.Argument(
        help="Two to four runs: run ids, or their first or last characters, or folders with the files of a run.",
        show_default=False,
        metavar="RUN RUN...",
    ),
]


@app.command()
def compare(
    runs: Runs,
    metric: Annotated[str | None, typer.Option(help="Compare this ranking alone; if left out, all they share.")] = None,
    k: Annotated[
        int | None, typer.Option("--k", "-k", min=1, help="Compare the first K alone; if left out, each k they share.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two to four finished runs: rankings with their chance level, damage, components and depth."""
    from cwa_engine.records import comparison
    from cwa_engine.rows import to_plain

    found = comparison.compare(*_reports(runs), metric=metric, k=k)
    show(to_plain(found) if as_json else comparison_report(found))


def _reports(runs: list[str]) -> list[RunReport]:
    """The report of each run. A daemon is asked where one of them is given by its id."""
    from cwa_engine.records.run_report import open_run

    reports: dict[str, RunReport] = {run: open_run(run) for run in runs if _is_folder(run)}
    if ids := [run for run in runs if run not in reports]:
        with connect() as client:
            reports |= {run: _report(client, run) for run in ids}
    return [reports[run] for run in runs]


def _is_folder(run: str) -> bool:
    return "/" in run or Path(run).is_dir()


def _report(client: Client, run: str) -> RunReport:
    """A run's report from its files, each compared with what the daemon knows of it."""
    from cwa_daemon.client import DaemonRunner

    return DaemonRunner(client).handle(run).report()


def comparison_report(found: Comparison) -> RenderableType:
    """The answer in words, then the tables it is taken from."""
    from rich.console import Group
    from rich.text import Text

    from cwa_tui import comparison_view as view
    from cwa_tui.visible import words

    parts: list[RenderableType] = [_table(view.runs_table(found))]
    parts += ["", words(found.differing, "bold"), *(_listed(sentence) for sentence in found.sentences)]
    parts += ["", _table(view.differences_table(found))] if found.differences else []
    for metric in view.metrics_of(found):
        parts += ["", words(view.ranking_name(metric), "bold underline")]
        tables = [view.overlaps_table(found, metric)]
        tables += [view.damage_table(found, metric, name) for name in view.perturbations_of(found, metric)]
        tables += [view.paired_table(found, metric), *view.profile_tables(found, metric)]
        parts += [_table(table) for table in tables if table.rows]
    return Group(*parts, *(Text(note, style="dim") for note in _NOTES))


_NOTES = (
    "chance: what random sets of all ranked weights share; within: random sets with as many weights of each parameter; "
    "p: how often they share at least as many.",
    "tau: Kendall's, of the places of shared weights. Δ: change of the loss, the logarithm of the perplexity ratio; of a "
    "control the draw that changes it most.",
    "Each p and each interval is for its row alone; of twenty rows one misleads by chance.",
)


def _listed(sentence: str) -> RenderableType:
    """A sentence with its further lines indented."""
    from rich.padding import Padding
    from rich.table import Table

    from cwa_tui.visible import words

    line = Table.grid(padding=(0, 1))
    line.add_row("·", words(sentence))
    return Padding(line, (0, 0, 0, 1))


def _table(table: ViewTable) -> RenderableType:
    """The table with the columns that fit."""
    import shutil
    import sys

    from rich.table import Table

    from cwa_tui.cli.tables import TABLE
    from cwa_tui.columns import fit
    from cwa_tui.comparison_view import INTERVAL, fitted
    from cwa_tui.visible import words

    room = (shutil.get_terminal_size().columns if sys.stdout.isatty() else 200) - 2  # for the frame
    rows, columns = table.rows, fitted(table.rows, table.columns)
    widths = fit(columns, room)
    intervals = [column.key for column in columns if column.key.endswith(INTERVAL)]
    if not all(key in widths for key in intervals):  # below the figure then, of every run alike
        rows = [_folded(row, intervals) for row in rows]
        columns = [column for column in columns if column.key not in intervals]
        widths = fit(columns, room)
    shown = [column for column in columns if column.key in widths]
    printed = Table(title=table.title, **TABLE)
    for column in shown:
        printed.add_column(words(column.label), justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        cells = ("\n".join(_shortened(row.cells.get(c.key, ""), c)) for c in shown)
        printed.add_row(*map(words, cells), style=row.style)
    return printed


def _folded(row: TableRow, intervals: Sequence[str]) -> TableRow:
    """The row with each interval below its figure."""
    from dataclasses import replace

    from cwa_tui.comparison_view import INTERVAL

    cells = dict(row.cells)
    for key in intervals:
        if interval := cells.pop(key, "").strip("-"):
            cells[key.removesuffix(INTERVAL)] += f"\n{interval}"
    return replace(row, cells=cells)


def _shortened(text: str, column: Column) -> list[str]:
    """The lines of a cell, cut as the column says where they are longer than it may become."""
    from cwa_tui.columns import shorten

    first, *below = text.split("\n")
    return [shorten(first, max(column.width, column.most), column.cut), *below]
