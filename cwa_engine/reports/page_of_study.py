"""The page of a study: its answer, what would overturn it, what is not concluded, its tables, and how each cell ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from cwa_engine.command_line import command_of
from cwa_engine.reports.methods import limitations, methods_paragraph, protocol_line
from cwa_engine.reports.page_figures import figure_section
from cwa_engine.reports.page_parts import Block, Code, Facts, Headline, Page, Prose, Section, Statement, Statements
from cwa_engine.reports.page_tables import Column, interval, signed, table, table_of, text
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.registration import standing
from cwa_engine.studies.registry import STUDY_QUESTIONS
from cwa_engine.studies.report import CELLS, StudyReport

_SIGNS = {"waiting": "·", "queued": "○", "running": "▶", "done": "✓", "failed": "✗", "cancelled": "⊘"}


def study_parts(report: StudyReport) -> Page:
    """All that the page of a study says."""
    folder, study = report.folder, report.folder.study
    question = STUDY_QUESTIONS.get(study.question)
    return Page(
        subject=f"study {folder.id}",
        kicker=f"Study {folder.id}",
        title=study.name or study.question or "A grid of runs",
        question=question.asks if question else study.question or "A grid of runs without a question",
        answer=tuple(_answer(report)),
        headlines=tuple(_headlines(report)),
        sections=(
            Section("findings", "Findings", tuple(_findings(report))),
            figure_section(report, "study", folder.id),
            Section("tables", "Tables of the answer", tuple(_tables(report))),
            Section("runs", "Runs", tuple(_runs(report))),
            Section("method", "Method", tuple(_method(report))),
            Section("limits", "Limits", (Statements(tuple(map(Statement, limitations(report)))),)),
            Section("repeat", "How to repeat it", tuple(_repeat(report))),
        ),
    )


def _answer(report: StudyReport) -> Iterator[Statement]:
    if not report.complete:
        further = "; its question may ask for further runs" if report.folder.awaits_further else ""
        yield Statement(f"So far: {_counted(report.progress)}{further}.", outcome="not tested")
    if report.answer:
        yield Statement(report.answer.sentence)
    elif report.complete:
        yield Statement(f"The study has no question; of its runs {_counted(report.progress)}.")


def _counted(progress: tuple[CellProgress, ...]) -> str:
    """`3 done, 1 failed`."""
    return (
        ", ".join(f"{count:,} {state}" for state, count in Counter(cell.state for cell in progress).items()) or "none"
    )


def _headlines(report: StudyReport) -> Iterator[Headline]:
    yield Headline("Runs", f"{len(report.runs):,} of {len(report.progress):,}", _counted(report.progress))
    models = {run.report.model.name for run in report.runs}
    if models:
        yield Headline("Models", f"{len(models):,}")


def _findings(report: StudyReport) -> Iterator[Block]:
    if (answer := report.answer) is None:
        return
    if answer.findings:
        yield Statements(tuple(Statement(f.sentence, f"Overturned by: {f.overturned_by}") for f in answer.findings))
    if answer.refused:
        yield Statements(tuple(map(Statement, answer.refused)), "Not concluded")
    if answer.rule:
        yield Prose(f"Rule: {answer.rule}")


def _tables(report: StudyReport) -> Iterator[Block]:
    for rows in report.answer.tables if report.answer else ():
        if rows.rows:
            whole = f"{rows.table.name}, which `cwtool study export {report.folder.id} --output FOLDER` writes"
            yield table_of(rows, whole=whole)


def _runs(report: StudyReport) -> Iterator[Block]:
    done = {run.cell.number: run.report.summary for run in report.runs}

    def critical(each: CellProgress) -> tuple[float, float, float] | None:
        summary = done.get(each.cell.number)
        point = summary.headline.critical if summary and summary.headline else None
        return (point.delta_nll, point.delta_low, point.delta_high) if point else None

    yield table(
        "Cells",
        report.progress,
        (
            Column("cell", lambda each: each.cell.number),
            text("run", lambda each: each.cell.label),
            text("state", lambda each: f"{_SIGNS.get(each.state, '?')} {each.state}"),
            text("run id", "run_id"),
            Column("tries", lambda each: each.attempt or None),
            Column("Δ loss (nats/token)", critical, lambda found: signed(found and found[0])),
            Column("95 % interval", critical, lambda found: interval(*found[1:]) if found else interval(None, None)),
            text("why", _reason),
        ),
        f"{CELLS.name}, which `cwtool study export {report.folder.id} --output FOLDER` writes",
        "Δ: of each run's first metric the largest critical set that was compared with controls. "
        "`cwtool report RUN_ID` writes the page of a run.",
    )
    failed = [each for each in report.progress if each.error]
    if failed:
        entries = (Statement(f"{each.cell.number} {each.cell.label}: {_reason(each)}", each.error.hint if each.error else "")
                   for each in failed)  # fmt: skip
        yield Statements(tuple(entries), "Not done")


def _reason(each: CellProgress) -> str:
    return each.error.message if each.error else ""


def _method(report: StudyReport) -> Iterator[Block]:
    folder = report.folder
    if report.runs:
        yield Prose(methods_paragraph(report))
        yield Prose(f"Protocol: {protocol_line(report)}")
    registered = standing(folder, report.runs).sentence
    yield Facts(
        "Study",
        (
            ("id", folder.id),
            ("asked for", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(folder.created))),
            ("SHA-256 of what is asked", folder.study.sha256()),
            ("registration", registered),
            *((f"texts of cell {run.cell.number}", f"{run.report.texts.source}, SHA-256 {run.report.texts.sha256}")
              for run in report.runs[:1]),
        ),
    )  # fmt: skip
    commands = "\n".join(command_of(each.cell.spec) for each in report.progress[:_MOST_COMMANDS])
    more = len(report.progress) - _MOST_COMMANDS
    yield Code(f"Each cell as a command line{f', the first {_MOST_COMMANDS}' if more > 0 else ''}", commands)


_MOST_COMMANDS = 20


def _repeat(report: StudyReport) -> Iterator[Block]:
    study = report.folder.id
    yield Prose(
        "The first command goes on with what is not done and shows the answer; the second packs all of it into one file."
    )
    yield Code("", f"cwtool study resume {study}\ncwtool bundle {study}")
    prints = tuple(
        (f"cell {row.cell}, {row.run_id}", row.fingerprint or "no fingerprint") for row in report.cells if row.run_id
    )[:100]
    if prints:
        yield Facts("Fingerprints of the runs", prints)
