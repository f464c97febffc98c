"""What else a run was asked: all verdicts, stability, fidelity, interactions, the smallest set, spikes, notes."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from cwa_engine.questions.ablation import cost_sentence
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import HalfOverlap, to_plain
from cwa_tui.tables.answers import (
    VERDICT_STYLES,
    critical_set_table,
    fidelity_table,
    floor_sentence,
    interactions_table,
    spike_removal_table,
    spikes_table,
    stability_table,
    tasks_table,
)
from cwa_tui.text.visible import words


class AnswersPane(VerticalScroll):
    """Shows a report; there is none before a run is done."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.border_title = "answers"
        self._text = Static(id="answers-text")
        self._drawn: tuple[RunReport | None, str] | None = None

    def compose(self) -> ComposeResult:
        yield self._text

    def show_report(self, report: RunReport | None, nothing: str) -> None:
        if self._drawn is None or self._drawn[0] is not report or self._drawn[1] != nothing:
            self._drawn = (report, nothing)
            self._text.update(answers(report) if report else words(nothing))


def answers(report: RunReport) -> RenderableType:
    """All verdicts and every answer that the run has."""
    summary = report.summary
    parts: list[RenderableType] = []
    for verdict in report.verdicts:
        style = VERDICT_STYLES.get(verdict.outcome, "")
        parts.append(words(f"{verdict.metric} k {verdict.k:,}: {verdict.sentence}", style))
    parts += [Text(_halves(row)) for row in summary.halves]
    if summary.stability:
        parts.append(stability_table(summary.stability))
    if summary.fidelity:
        parts.append(fidelity_table(summary.fidelity))
    if summary.interactions:
        parts.append(interactions_table(summary.interactions))
    if report.critical_set:
        parts.append(critical_set_table(report.critical_set))
    if summary.spikes:
        parts.append(spikes_table(summary.spikes))
    if report.spike_removal:
        parts.append(spike_removal_table(report.spike_removal))
    if summary.ablation:
        parts.append(Text(cost_sentence(to_plain(summary.ablation))))
    if summary.task_comparisons:
        parts.append(tasks_table(summary.task_comparisons))
    if floor := report.floor:
        parts.append(Text(floor_sentence(floor)))
    parts += [words(note) for note in report.model.notes]
    parts.append(words(f"texts: {report.texts.source}"))
    if report.folder:
        parts.append(words(f"files: {report.folder}"))
    if report.fingerprint:
        parts.append(words(f"fingerprint: {report.fingerprint}"))
    spaced = [part for each in parts for part in (each, Text(""))]
    return Group(*spaced[:-1])


def _halves(row: HalfOverlap) -> str:
    """How much of a ranking either half of its texts names too."""
    return (
        f"{row.metric}: of the top {row.k:,}, {row.first} and {row.second} are in the top {row.k:,} by either half of the "
        f"scoring texts, {row.both} in both; the halves have {row.common} in common, {row.chance:.2g} by chance"
    )
