"""The list of studies: one line each, the latest first."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_engine.records.run_id import short_id
from cwa_tui.store.studies import KnownStudy
from cwa_tui.tables.columns import Column
from cwa_tui.tables.rows import Rows, TableRow
from cwa_tui.text import format as fmt
from cwa_tui.widgets.row_table import RowTable

COLUMNS = (
    Column("id", "id", 4),
    Column("question", "question", 12, most=14),
    Column("name", "name", 12, most=30, optional=2),
    Column("on", "on", 4, most=10, optional=3),
    Column("state", "state", 10),
    Column("cells", "cells", 10, most=16),
    Column("age", "age", 6, right=True),
    Column("answer", "answer", 16, most=200, optional=1),
    Column("study", "study id", 32, most=60, cut="middle", hidden=True),
)


class StudiesTable(RowTable):
    """Keys of rows are ids of studies."""

    COLUMNS = COLUMNS

    def show_studies(self, studies: Sequence[KnownStudy], now: float, nothing: str) -> None:
        coarse = now - now % 10  # so that nothing is drawn for ages alone
        columns = [column for column in COLUMNS if column.key != "on" or any(study.on for study in studies)]
        self.show(Rows(columns, [_row(study, coarse) for study in studies]), nothing=nothing)


def cells_in_short(study: KnownStudy) -> str:
    """`7/12 done ✗1`: how many of all are done, and how many failed."""
    failed = study.count("failed")
    return f"{study.count('done')}/{len(study.progress)}" + (f" {fmt.STATE_SIGNS['failed']}{failed}" if failed else "")


def answer_in_short(study: KnownStudy) -> str:
    """The answer's sentence once all cells have ended, else how many have not."""
    if not study.is_final and study.answer:
        return f"so far: {study.answer.sentence}"
    if not study.complete:
        left = len(study.progress) - study.count("done", "failed", "cancelled")
        return f"{left} to go"
    return study.answer.sentence if study.answer else study.why_no_answer


def _row(study: KnownStudy, now: float) -> TableRow:
    cells = {
        "id": short_id(study.id),
        "question": study.study.question or "a grid",
        "name": study.study.name,
        "on": study.on or "daemon",
        "state": fmt.signed(study.state),
        "cells": cells_in_short(study),
        "age": fmt.age(study.created, now),
        "answer": answer_in_short(study),
        "study": study.id,
    }
    style = fmt.STATE_STYLES.get(study.state, "")
    values = {"id": study.id, "age": study.created, "state": study.state, "cells": study.count("done")}
    return TableRow(study.id, cells, styles={"state": style}, values=values)
