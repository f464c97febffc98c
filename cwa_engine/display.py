"""What a notebook shows of reports, comparisons, figures and weight cards: short HTML without scripts.

Every text is escaped. Colours are inherited, so it reads on light and dark pages; figures are pictures on white, in the file
itself. Where the extra that draws them is not installed, their tables stand instead. torch-free.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.exchange.any_printed import any_printed
from cwa_engine.exchange.printed import Cell, Number, PrintedTable
from cwa_engine.exchange.printed_html import printed_html
from cwa_engine.exchange.run_printed import DAMAGE, WEIGHTS, printed_of_run
from cwa_engine.figures import registry
from cwa_engine.figures.figure import Figure
from cwa_engine.records.compared import Comparison
from cwa_engine.records.run_report import RunReport
from cwa_engine.reports.drawing import svg
from cwa_engine.reports.methods import file_name, protocol_line
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.report import StudyReport
from cwa_engine.weight_rows import WeightCard

SHOWN_ROWS = 10  # of a table
SHOWN_SENTENCES = 4
Source = RunReport | StudyReport | Comparison | WeightCard


def figures_of(source: Source) -> list[Figure]:
    """Every figure that a report, a comparison or a weight card has measured the data of.

    figures_of(report)[0].frame()
    """
    match source:
        case RunReport():
            return registry.figures_of(source, "run")
        case StudyReport():
            return registry.figures_of(source, "study")
        case Comparison():
            return registry.figures_of(source, "comparison")
    return registry.figures_of(source, "weight")


def html_of(record: object) -> str:
    """The HTML of a record. Raises TypeError for one that has none."""
    match record:
        case RunReport():
            parts = _run(record)
        case StudyReport():
            parts = _study(record)
        case Answer():
            parts = _answer(record)
        case Comparison():
            parts = _comparison(record)
        case WeightCard():
            parts = _card(record)
        case Figure():
            parts = _figure(record)
        case _:
            raise TypeError(f"a {type(record).__name__} has no HTML")
    return f'<div style="line-height:1.4">{"".join(parts)}</div>'


def _run(report: RunReport) -> Iterator[str]:
    yield _title(f"{file_name(report.model.name)} · {report.run_id}")
    yield _note(protocol_line(report))
    yield _list(_first([verdict.sentence for verdict in report.verdicts]))
    printed = printed_of_run(report)
    for name in (DAMAGE, *(f"{WEIGHTS}{metric}" for metric in report.metrics[:1])):
        if name in printed:
            yield printed_html(printed[name])
    yield from _first_figure(report)


def _study(report: StudyReport) -> Iterator[str]:
    yield _title(f"{report.folder.study.name or report.folder.study.question or 'study'} · {report.folder.id}")
    if not report.complete:
        yield _note("Not all cells have ended: this is the answer so far.")
    if report.answer:
        yield from _answer(report.answer)
    yield from _first_figure(report)


def _answer(answer: Answer) -> Iterator[str]:
    yield f"<p><b>{escape(answer.sentence)}</b></p>"
    yield _list(f"{finding.sentence} Overturned by: {finding.overturned_by}" for finding in answer.findings)
    yield _list(f"Not concluded: {refused}" for refused in answer.refused)
    for rows in answer.tables[:1]:
        if rows.rows:
            yield printed_html(_short(rows.table.name, rows.table, rows.rows))


def _comparison(found: Comparison) -> Iterator[str]:
    yield _title(" · ".join(run.label for run in found.runs))
    yield _note(found.differing)
    yield _list(found.sentences)
    rows = tuple(
        (run.label, file_name(run.model), Number(run.perplexity, digits=4), Number(run.bits_per_byte, digits=4))
        for run in found.runs
    )
    yield printed_html(PrintedTable("runs", "", ("Run", "Model", "Perplexity", "Bits per byte"), rows))
    yield from _first_figure(found)


def _card(card: WeightCard) -> Iterator[str]:
    yield _title(f"{card.facts.target} · {file_name(card.model)}")
    alone = card.alone
    share = card.facts.smaller_share
    rows: list[tuple[Cell, ...]] = [
        ("value", Number(card.facts.value, digits=5)),
        ("|value| larger than", "n/a" if share is None else f"{share:.4%} of its tensor"),
        ("loss without it, nats per token", Number(alone.delta_nll, alone.delta_low, alone.delta_high)),
        ("perplexity ratio", Number(alone.perplexity_ratio, digits=4)),
        *(
            (f"rank by {row.metric}", "n/a" if row.rank is None else f"{row.rank:,} of {row.of:,}")
            for row in card.ranks
        ),
    ]
    if alone.collapsed_at:
        rows.append(("without it the model collapses at", alone.collapsed_at))
    yield printed_html(PrintedTable("card", "", ("", ""), tuple(rows)))
    yield _list(card.unknown)
    yield from _first_figure(card)


def _figure(figure: Figure) -> Iterator[str]:
    yield f"<p><b>{escape(figure.title)}</b></p>"
    try:
        picture = base64.b64encode(svg(figure, "two-column").encode()).decode()
    except InvalidInput as error:
        yield printed_html(_short(figure.name, figure.table.table, figure.table.rows))
        yield _note(f"{error.message}; {error.hint} draws this figure")
    else:
        yield (
            f'<img alt="{escape(figure.title)}" src="data:image/svg+xml;base64,{picture}" '
            'style="background:#fff;padding:6px;max-width:100%">'
        )
    yield _note(figure.caption)


def _first_figure(source: Source) -> Iterator[str]:
    found = figures_of(source)
    if found:
        yield from _figure(found[0])
    if len(found) > 1:
        yield _note(f"The first of {len(found)} figures; cwa.figures_of gives all of them.")


def _short(name: str, table: Any, rows: Any) -> PrintedTable:
    more = len(rows) - SHOWN_ROWS
    return any_printed(name, table, rows[:SHOWN_ROWS], f"and {more:,} more rows" if more > 0 else "")


def _first(sentences: Sequence[str]) -> Iterator[str]:
    yield from sentences[:SHOWN_SENTENCES]
    if len(sentences) > SHOWN_SENTENCES:
        yield f"and {len(sentences) - SHOWN_SENTENCES} more verdicts, which the table below has"


def _title(text: str) -> str:
    return f'<div style="font-weight:600">{escape(text)}</div>'


def _note(text: str) -> str:
    return f'<div style="font-size:85%;opacity:.75;max-width:60em">{escape(text)}</div>' if text else ""


def _list(sentences: Iterable[str]) -> str:
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul style="max-width:60em">{lines}</ul>' if lines else ""
