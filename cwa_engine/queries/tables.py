"""The tables that can be queried. Their columns are the fields of the rows that runs are made of. torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.queries.columns import TEXT, columns_of
from cwa_engine.queries.run_row import RUN_COLUMNS, run_row
from cwa_engine.questions import ablation, interactions, spike_removal, stability
from cwa_engine.questions import tasks as harness_tasks
from cwa_engine.questions.fidelity import Fidelity
from cwa_engine.questions.tasks import TaskComparison
from cwa_engine.records import tables
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import HalfOverlap, Separation, Verdict, to_plain

RUN_ID, METRIC = "run_id", "metric"


@dataclass(frozen=True)
class SummaryTable:
    """A table whose rows stand in the summary and the manifest of a run."""

    name: str
    what: str
    own: Mapping[str, str]  # column -> its type in SQL
    rows: Callable[[RunReport], Iterable[JsonMap]]

    @property
    def columns(self) -> dict[str, str]:
        return {RUN_ID: TEXT, **self.own}


@dataclass(frozen=True)
class FileTable:
    """A table whose rows are those of CSV files. `name_gives` is a column that the name of a file has after `topk_`."""

    name: str
    what: str
    table: Table[Any]
    name_gives: str = ""

    @property
    def columns(self) -> dict[str, str]:
        named = {self.name_gives: TEXT} if self.name_gives else {}
        return {RUN_ID: TEXT, **named, **columns_of(self.table.row)}

    def files(self, report_files: Iterable[str]) -> dict[str, str]:
        """Name of a file of a run -> what its name gives, for those files of the run that belong to this table."""
        if not self.name_gives:
            return {name: "" for name in report_files if name == self.table.name}
        start, _, end = self.table.name.partition("*")
        return {
            name: name.removeprefix(start).removesuffix(end)
            for name in report_files
            if name.startswith(start) and name.endswith(end)
        }


QueryTable = SummaryTable | FileTable


def _plain(name: str) -> Callable[[RunReport], Iterable[JsonMap]]:
    return lambda report: (to_plain(row) for row in getattr(report, name))


RUNS = SummaryTable("runs", "one row a run: model, texts, what was asked for, baseline, versions", RUN_COLUMNS, run_row)

SUMMARY_TABLES = (
    RUNS,
    SummaryTable(
        "separations", "each critical set beside each of its controls", columns_of(Separation), _plain("separations")
    ),
    SummaryTable(
        "verdicts",
        "whether each critical set is distinguishable from its controls",
        columns_of(Verdict),
        _plain("verdicts"),
    ),
    SummaryTable("fidelity", "how well each metric predicts measured damage", columns_of(Fidelity), _plain("fidelity")),
    SummaryTable(
        "halves",
        "how much of a ranking each half of the scoring texts gives alone",
        columns_of(HalfOverlap),
        lambda report: map(to_plain, report.summary.halves),
    ),
    SummaryTable(
        "task_comparisons",
        "every case of every task beside the intact model, and critical sets beside their controls",
        columns_of(TaskComparison),
        _plain("task_comparisons"),
    ),
)
FILE_TABLES = (
    FileTable("damage", "each critical set and each draw of a control, measured", tables.PERTURBATION),
    FileTable("topk", "the ranked weights, by metric", tables.topk_table("*"), METRIC),
    FileTable("scores", "how many of all scored units have a score of what size, by metric", tables.SCORES),
    FileTable("stability", "how far rankings by other texts agree, pair by pair", stability.TABLE),
    FileTable("controls", "what each draw of a control consists of", tables.CONTROLS),
    FileTable("interactions", "each unit of a critical set alone, and the set without it", interactions.TABLE),
    FileTable("ablations", "the candidates of the exact ranking", ablation.TABLE),
    FileTable("spikes", "what each weight of a ranking by spikes makes of its spike", spike_removal.SPIKES),
    FileTable("task_scores", "what every document of every task scores in every case", harness_tasks.TABLE),
    FileTable("evaluations", "the loss of every sequence in every case; large", tables.EVALUATION),
)
TABLES: Mapping[str, QueryTable] = {table.name: table for table in (*SUMMARY_TABLES, *FILE_TABLES)}
