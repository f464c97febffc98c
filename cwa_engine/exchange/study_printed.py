"""The tables of a study's answer as papers print them. torch-free."""

from __future__ import annotations

from cwa_engine.exchange.any_printed import any_printed
from cwa_engine.exchange.printed import PrintedTable
from cwa_engine.reports.methods import protocol_line
from cwa_engine.studies.report import StudyReport


def printed_of_study(report: StudyReport) -> dict[str, PrintedTable]:
    """Name -> table, of every table that has rows: those of the answer, then the cells."""
    found = {}
    for rows in report.tables():
        name = rows.table.name.removesuffix(".csv")
        if rows.rows:
            found[name] = any_printed(name, rows.table, rows.rows, _caption(report, name))
    return found


def _caption(report: StudyReport, name: str) -> str:
    study, answer = report.folder.study, report.answer
    parts = [f"{name.replace('_', ' ').capitalize()} of the study {study.name or report.folder.id}."]
    if answer:
        parts += [f"{answer.sentence[:1].upper()}{answer.sentence[1:].rstrip('.')}."]
    if not report.complete:
        parts += ["Not all runs have ended: this is the answer so far."]
    parts += [f"Intervals in brackets are 95 %. Texts and protocol: {protocol_line(report)}. Study {report.folder.id}."]
    return " ".join(parts)
