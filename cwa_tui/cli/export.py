"""`cwtool export`: a run or a study in files that papers, notebooks and other tools take."""

from __future__ import annotations

from typing import Annotated

import typer

from cwa_tui.cli import completion
from cwa_tui.cli.output import say
from cwa_tui.cli.parameters import EXPORTED, Json

app = typer.Typer()


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            help="Run id or study id, or its first or last characters, or a folder with the files of a run; if left out, "
            "the latest finished run.",
            autocompletion=completion.finished_run_ids,
            metavar="RUN|STUDY",
        ),
    ] = "latest",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="csv, json or parquet: all tables, with exact numbers. markdown: the same, and a page as papers print "
            "them. latex: tables with booktabs and intervals. safetensors: the ranked weights as masks of the model.",
            autocompletion=completion.one_of(*EXPORTED),
            metavar="FORMAT",
        ),
    ] = "csv",
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            "-t",
            help="This table only, such as perturbation, topk_grad_x_weight, or damage in latex; printed, unless --output "
            "names a file.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write to, a file for one table and for masks; if left out, one named after the run, here.",
            metavar="PATH",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Of this ranking alone, in latex and safetensors; if left out, all in latex, the run's first in safetensors.",
            autocompletion=completion.metrics,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", "--k", min=1, help="The first K weights: 10 in latex, all in safetensors if left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run or a study as CSV, JSON, Parquet, Markdown, LaTeX, or masks of its weights."""
    from cwa_engine.exchange.writing import checked_export
    from cwa_engine.studies.report import StudyReport
    from cwa_tui.cli.exported import exported
    from cwa_tui.cli.sources import opened_report

    checked = checked_export(form)
    with opened_report(source) as report:
        if isinstance(report, StudyReport) and not report.complete:
            say("not all cells have ended: this is the answer so far")
        exported(report, checked, table, output, metric, k, as_json)
