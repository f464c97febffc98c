"""`cwtool compare`: finished runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_tui.cli import completion
from cwa_tui.cli.connection import connect
from cwa_tui.cli.output import show
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cwa_engine.records.compared import Comparison
    from cwa_engine.records.run_report import RunReport

app = typer.Typer()
Runs = Annotated[
    list[str],
    typer.Argument(
        help="Two to four runs: run ids, or their first or last characters, or folders with the files of a run.",
        show_default=False,
        metavar="RUN RUN...",
        autocompletion=completion.finished_run_ids,
    ),
]


@app.command()
def compare(
    runs: Runs,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Compare this ranking alone; if left out, all they share.", autocompletion=completion.metrics
        ),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", "-k", min=1, help="Compare the first K alone; if left out, each k they share.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Subtract damage that was not measured alike too, each difference with its reasons beside it.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare two to four finished runs: rankings with their chance level, damage, components and depth.

    What may not be compared is left out, and named with the reason.
    """
    from cwa_engine.records import comparison
    from cwa_engine.rows import to_plain

    with _reports(runs) as reports:
        found = comparison.compare(*reports, metric=metric, k=k, force=force)
    show(to_plain(found) if as_json else comparison_report(found))


@contextmanager
def _reports(runs: list[str]) -> Iterator[list[RunReport]]:
    """The report of each run. A daemon is asked, for as long as they are read, where one of them is given by its id."""
    from cwa_engine.records.run_report import open_run

    reports: dict[str, RunReport] = {run: open_run(run) for run in runs if _is_folder(run)}
    with ExitStack() as stack:
        if ids := [run for run in runs if run not in reports]:
            client = stack.enter_context(connect())
            reports |= {run: client.report(run) for run in ids}
        yield [reports[run] for run in runs]


def _is_folder(run: str) -> bool:
    return "/" in run or Path(run).is_dir()


def comparison_report(found: Comparison) -> RenderableType:
    """The answer in words, then the tables it is taken from."""
    from rich.console import Group
    from rich.text import Text

    from cwa_tui.cli.lines import as_lines
    from cwa_tui.tables import comparison as view
    from cwa_tui.text.visible import words

    parts: list[RenderableType] = [as_lines(view.runs_table(found))]
    parts += ["", words(found.differing, "bold"), *(_listed(sentence) for sentence in found.sentences)]
    parts += ["", as_lines(view.differences_table(found))] if found.differences else []
    for metric in view.metrics_of(found):
        parts += ["", words(view.ranking_name(metric), "bold underline")]
        tables = [view.overlaps_table(found, metric)]
        tables += [view.levels_table(found, metric, name) for name in view.perturbations_of(found, metric)]
        tables += [view.paired_table(found, metric), *view.profile_tables(found, metric)]
        parts += [part for table in tables if table.rows for part in (as_lines(table), "")]
    refused = not found.forced and any(pair.damage.reasons or pair.other_settings for pair in found.pairs)
    return Group(*parts, *(Text(note, style="dim") for note in (*_NOTES, *([_FORCE] if refused else []))))


_NOTES = (
    "chance: what random sets of all ranked weights share; within: random sets with as many weights of each parameter; "
    "p: how often they share at least as many.",
    "tau: Kendall's, of the places of shared weights. Δ: change of the loss, the logarithm of the perplexity ratio; of a "
    "control the leading draw, ahead of the others.",
    "Each p and each interval is for its row alone; of twenty rows one misleads by chance.",
)

_FORCE = "--force subtracts damage that was not measured alike too, each difference with its reasons beside it."


def _listed(sentence: str) -> RenderableType:
    """A sentence with its further lines indented."""
    from rich.padding import Padding
    from rich.table import Table

    from cwa_tui.text.visible import words

    line = Table.grid(padding=(0, 1))
    line.add_row("·", words(sentence))
    return Padding(line, (0, 0, 0, 1))
