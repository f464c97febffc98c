"""What a study answers, and what a question of studies consists of. torch-free.

A module of `questions/` with a `QUESTION` is a question; `registry` finds it. An answer is made of the reports of finished
runs and of nothing else, so it can be recomputed from run folders years later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cwa_engine.base.frames import frame_named
from cwa_engine.questions.question import TableRows
from cwa_engine.records.run_report import RunReport
from cwa_engine.rich_display import RichDisplay
from cwa_engine.spec import RunSpec
from cwa_engine.studies.study import Cell, Study

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class StudyRun:
    """A cell whose run is done."""

    cell: Cell
    report: RunReport


@dataclass(frozen=True)
class Finding:
    """One statement, with its numbers and intervals, and what would overturn it."""

    sentence: str
    overturned_by: str


@dataclass(frozen=True)
class Answer(RichDisplay):
    """What a study comes to. `tables` have what the sentences say and the data of its figure, ready to be saved as CSV."""

    question: str
    sentence: str  # the answer
    findings: tuple[Finding, ...] = ()
    tables: tuple[TableRows[Any], ...] = ()
    refused: tuple[str, ...] = ()  # what was not concluded, and why
    rule: str = ""  # how the answer is computed, so that another may repeat it

    def frame(self, name: str) -> pandas.DataFrame:
        """One of the tables as a pandas frame: frame("scaling"). Raises InvalidInput, also where pandas is not installed."""
        return frame_named(name, frames_of(self.tables), "the answer")


def frames_of(tables: Sequence[TableRows[Any]]) -> dict[str, tuple[type, Sequence[Any]]]:
    """Name of each table -> what its rows are, and the rows."""
    return {rows.table.name.removesuffix(".csv"): (rows.table.row, rows.rows) for rows in tables}


@dataclass(frozen=True)
class StudyQuestion:
    """One thing that studies ask.

    `run` are fields of `RunSpec` that its runs need, which the user's own replace. `check` raises InvalidInput for a study
    that cannot answer it, before anything runs. `answer` takes the runs that are done, in the order of the cells; it says in
    `refused` what it does not conclude from them, and raises nothing for runs that are too few. `further` gives runs that
    can only be asked for once those of the grid have ended, made from the reports of those that are done; it gives the same
    for the same reports. `answer` then takes all of them, those of the grid first.
    """

    name: str
    place: int  # among the questions, as lists show them
    asks: str  # in words, ending in a question mark
    needs: str  # in words: which models, how many
    check: Callable[[Study], None]
    answer: Callable[[Sequence[StudyRun]], Answer]
    run: Mapping[str, Any] = field(default_factory=dict)
    further: Callable[[Study, Sequence[StudyRun]], Sequence[RunSpec]] | None = None
