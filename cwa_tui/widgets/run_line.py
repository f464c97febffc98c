"""The selected run in a few lines: its state, why it failed, the baseline, and what it was asked for."""

from __future__ import annotations

from rich.text import Text
from textual.geometry import Size

from cwa_engine.rows import Baseline
from cwa_tui import format as fmt
from cwa_tui.followed_run import FollowedRun, RunStatus
from cwa_tui.state import SelectedRun
from cwa_tui.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic


class RunLine(QuietStatic):
    """A narrow layout shows the first two lines, and more after a failure."""

    def show_run(self, selected: SelectedRun | None, now: float) -> None:
        if selected is None:
            self.say(Text(""))
            return
        lines = [_where(selected, now), *_findings(selected.run), _asked(selected)]
        self.set_class(selected.run.status.error is not None, "-explained")
        self.say(Text("\n").join(line for line in lines if line))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A grid asks with the width of one column; this spans them all."""
        return super().get_content_height(container, viewport, viewport.width - self.gutter.width)


def _where(selected: SelectedRun, now: float) -> Text:
    status, job = selected.run.status, selected.job
    state = status.state or (job.state if job else "")
    said = Text.assemble((selected.run.run_id, "bold"), "  ", (state, fmt.STATE_STYLES.get(state, "")))
    if not status.ended:
        said.append(_stage(status))
    if job and job.started:
        said.append(f"  {fmt.clock((job.finished or now) - job.started)}")
    return said


def _stage(status: RunStatus) -> str:
    if at := status.progress:
        return f"  {fmt.progress(at.stage, at.done, at.total, 24, at.unit)}"
    return f"  {status.stage} ..." if status.stage else ""


def _findings(run: FollowedRun) -> list[Text]:
    lines, status = [], run.status
    if status.error:
        lines.append(words(status.error.message))
        if status.error.hint:
            lines.append(words(f"hint: {status.error.hint}"))
    if status.baseline:
        lines.append(Text(_baseline(status.baseline)))
    elif not status.error and run.log.lines:
        lines.append(words(run.log.lines[-1].text))
    return lines


def _baseline(baseline: Baseline) -> str:
    perplexity = fmt.perplexity(baseline.perplexity)
    measured = f"{baseline.sequences} sequences, {baseline.tokens:,} tokens"
    return f"baseline perplexity {perplexity} ({fmt.number(baseline.nll)} nats per token) on {measured}"


def _asked(selected: SelectedRun) -> Text:
    job, asked = selected.job, selected.asked
    if job is None or asked is None:
        return Text("")
    limit = f", first {asked.text_limit}" if asked.text_limit else ""
    fast = ", fast" if asked.fast else ""
    metrics, k = ", ".join(asked.metrics), ", ".join(map(str, asked.topk))
    return words(f"{job.model} on {job.device} · {metrics} · k {k} · {asked.texts}{limit}{fast}")
