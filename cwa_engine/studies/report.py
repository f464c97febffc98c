"""What a study has come to: its answer, computed from the reports of its runs. torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import CwaError, DaemonUnreachable, OutputError
from cwa_engine.base.files import write_whole
from cwa_engine.base.frames import frame_named
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.base.version import __version__
from cwa_engine.questions.question import TableRows
from cwa_engine.rich_display import RichDisplay
from cwa_engine.rows import to_plain
from cwa_engine.runner import Runner
from cwa_engine.studies.answer import Answer, StudyRun, frames_of
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress, progress_of
from cwa_engine.studies.registration import standing
from cwa_engine.studies.registry import answered

if TYPE_CHECKING:
    import pandas

ANSWER = "answer.json"


@dataclass(frozen=True, slots=True)
class CellRow:
    """A row of cells.csv: a cell of the study and its run."""

    cell: int
    label: str
    state: str
    run_id: str
    fingerprint: str | None  # of the run's files; None where it is not done
    attempt: int
    error: str


CELLS = Table("cells.csv", CellRow)


@dataclass(frozen=True)
class StudyReport(RichDisplay):
    """How each cell ended, the runs that are done, and what they answer."""

    folder: StudyFolder
    progress: tuple[CellProgress, ...]
    runs: tuple[StudyRun, ...]
    answer: Answer | None  # None for a grid without a question

    @property
    def complete(self) -> bool:
        """Whether all cells have ended, in whatever way, and the question asks for no others."""
        return all(cell.ended for cell in self.progress) and not self.folder.awaits_further

    @cached_property
    def cells(self) -> tuple[CellRow, ...]:
        """How each cell ended, and which run is its own."""
        fingerprints = {run.cell.number: run.report.fingerprint for run in self.runs}
        return tuple(
            CellRow(
                each.cell.number,
                each.cell.label,
                each.state,
                each.run_id,
                fingerprints.get(each.cell.number),
                each.attempt,
                each.error.message if each.error else "",
            )
            for each in self.progress
        )

    def files(self) -> Iterator[tuple[str, bytes]]:
        """(name, content) of answer.json, of the tables of the answer, and of cells.csv."""
        yield ANSWER, json.dumps(self.to_plain(), indent=2).encode()
        for rows in self.answer.tables if self.answer else ():
            yield rows.table.name, rows.table.to_bytes(rows.rows)
        yield CELLS.name, CELLS.to_bytes(self.cells)

    def tables(self) -> tuple[TableRows[Any], ...]:
        """The tables of the answer, and the cells."""
        return (*(self.answer.tables if self.answer else ()), TableRows(CELLS, self.cells))

    def frame(self, name: str) -> pandas.DataFrame:
        """A table of the answer, or "cells", as a pandas frame: frame("scaling").

        Raises InvalidInput for another name and where pandas is not installed.
        """
        return frame_named(name, frames_of(self.tables()), "the study")

    def to_plain(self) -> JsonMap:
        """All of it but the tables, as JSON has it."""
        answer, registered = self.answer, standing(self.folder, self.runs)
        return {
            "study": self.folder.id,
            "name": self.folder.study.name,
            "created": self.folder.created,
            "sha256": self.folder.study.sha256(),
            "registered": registered.holds,
            "registration": registered.sentence,
            "complete": self.complete,
            "question": self.folder.study.question,
            "sentence": answer.sentence if answer else None,
            "findings": to_plain(answer.findings) if answer else [],
            "refused": list(answer.refused) if answer else [],
            "rule": answer.rule if answer else "",
            "tables": [rows.table.name for rows in self.tables()],
            "cells": to_plain(self.cells),
            "cwtool": __version__,
        }


def study_report(folder: StudyFolder, runner: Runner) -> StudyReport:
    """The answer of the runs that are done. When all cells have ended, its files are written into the study's folder.

    A run whose files are altered or gone counts as failed. Raises OutputError where the folder cannot be written.
    """
    progress, runs = done_runs(progress_of(folder, runner), runner)
    question = folder.study.question
    report = StudyReport(folder, progress, runs, answered(question, runs) if question else None)
    if report.complete:
        _write(report)
    return report


def done_runs(
    progress: Sequence[CellProgress], runner: Runner
) -> tuple[tuple[CellProgress, ...], tuple[StudyRun, ...]]:
    """(the same, where a run whose files are altered or gone has failed; the runs that are done)"""
    found, runs = [], []
    for seen in progress:
        each = seen
        if seen.state == "done":
            try:
                runs.append(StudyRun(seen.cell, runner.attach(seen.run_id).report()))
            except DaemonUnreachable:  # says nothing of the run
                raise
            except CwaError as error:
                each = replace(seen, state="failed", error=error)
        found.append(each)
    return tuple(found), tuple(runs)


def _write(report: StudyReport) -> None:
    try:
        for name, content in report.files():
            write_whole(report.folder.path / name, content)
    except OSError as error:
        raise OutputError(
            f"the answer cannot be written to {report.folder.path}: {error.strerror}", hint="make room there"
        ) from error
