"""A run in a few lines: what it is, and what it found, or how far it is, or why it failed."""

from __future__ import annotations

from rich.text import Text
from textual.geometry import Size

from cwa_engine.records.run_id import short_id
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import Baseline, Verdict
from cwa_tui.store.state import SelectedRun
from cwa_tui.tables.answers import VERDICT_STYLES
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.damage_curve import CRITICAL
from cwa_tui.widgets.quiet_static import QuietStatic


class RunHeadline(QuietStatic):
    """The verdict on the ranking in view stands here; all others are in the pane of answers."""

    def show_run(self, selected: SelectedRun, metric: str | None, took: float | None, verdict_lines: int) -> None:
        """`took` is how long the run has been worked on, in seconds; a verdict takes at most so many lines."""
        room = verdict_lines * max(40, self.content_size.width)
        verdict = _verdict(selected, metric, room)
        lines = [_what(selected, took), _waits(selected), *_trouble(selected), *verdict, _measured(selected, metric)]
        self.say(Text("\n").join(line for line in lines if line))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A grid asks with the width of one column; this spans them all."""
        return super().get_content_height(container, viewport, viewport.width - self.gutter.width)


def _what(selected: SelectedRun, took: float | None) -> Text:
    job, asked, status = selected.job, selected.asked, selected.run.status
    state = status.state or (job.state if job else "")
    said = Text.assemble((short_id(selected.run.run_id), "bold"), "  ")
    said.append(fmt.signed(state), f"bold {fmt.STATE_STYLES.get(state, '')}".strip())
    if took is not None:
        said.append(f" {fmt.clock(took)}")
    if job:
        said.append_text(words(f"  {job.model} on {job.device}", "bold"))
    if job and asked:
        limit = f", first {asked.text_limit}" if asked.text_limit else ""
        k = ", ".join(f"{k:,}" for k in asked.topk)
        fast = ", fast" if asked.fast else ""
        said.append_text(words(f" · {', '.join(asked.metrics)} · k {k} · {asked.texts}{limit}{fast}"))
    elif job and job.kind != "run":
        said.append(f" · a job of kind {job.kind}")
    return said


def _waits(selected: SelectedRun) -> Text | None:
    """What a run that has not begun waits for."""
    job = selected.job
    return words(f"waits for: {job.waits_for}", "bold") if job and job.waits_for and not job.ended else None


def _trouble(selected: SelectedRun) -> list[Text]:
    error = selected.run.status.error
    if error is None:
        return []
    return [words(error.message, "bold"), *([words(f"hint: {error.hint}")] if error.hint else [])]


def _verdict(selected: SelectedRun, metric: str | None, room: int) -> list[Text]:
    """The verdict on the largest set of the ranking in view, and on how many sets there are more, in `room` cells."""
    verdicts: tuple[Verdict, ...] = selected.report.verdicts if selected.report else ()
    here = [verdict for verdict in verdicts if verdict.metric == metric] or list(verdicts)
    if not here:
        return []
    chosen = max(here, key=lambda verdict: verdict.k)
    rest = len(verdicts) - 1
    more = f" (5: {rest} more)" if rest else ""
    sentence = chosen.sentence
    if len(sentence) + len(more) > room and selected.report:
        sentence, more = _in_figures(selected.report, chosen), f" (5: whole{f', and {rest} more' if rest else ''})"
    return [words(sentence, VERDICT_STYLES.get(chosen.outcome, "")).append(more, "dim")]


def _in_figures(report: RunReport, verdict: Verdict) -> str:
    """A verdict whose sentence has no room: its outcome, the change by the set, and by the leading draws."""
    group = next(
        group
        for group in report.summary.damage
        if (group.metric, group.k, group.perturbation) == (verdict.metric, verdict.k, verdict.perturbation)
    )
    change = fmt.finite_delta(group.critical.delta_nll if group.critical else None)
    controls = ", ".join(f"{row.control} {fmt.finite_delta(row.largest)}" for row in group.controls)
    return f"{verdict.outcome} · k {verdict.k:,} {verdict.perturbation}: {change} nats · leading draws: {controls}"


def _measured(selected: SelectedRun, metric: str | None) -> Text | None:
    """The baseline, and the losses measured so far while there is no verdict yet."""
    baseline = selected.run.status.baseline or (selected.report.baseline if selected.report else None)
    if baseline is None:
        lines = selected.run.log.lines
        return words(lines[-1].text, "dim") if lines and not selected.run.status.error else None
    said = Text(_baseline(baseline))
    if selected.report is None:
        for point in selected.run.damage.values():
            if (point.metric, point.selection) == (metric, CRITICAL):
                loss = "collapsed" if point.collapsed_at else fmt.perplexity(point.perplexity)
                said.append(f" · k {point.k:,} {point.perturbation}: {loss} ({fmt.ratio(point.perplexity_ratio)})")
    return said


def _baseline(baseline: Baseline) -> str:
    measured = f"{baseline.sequences} sequences, {baseline.tokens:,} tokens"
    return f"baseline perplexity {fmt.perplexity(baseline.perplexity)} ({fmt.number(baseline.nll)} nats) on {measured}"
