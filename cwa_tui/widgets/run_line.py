"""The selected run in a few lines: where it stands, why it failed, what the intact model is worth, what was asked."""

from __future__ import annotations

from pathlib import PurePath

from rich.text import Text
from textual.geometry import Size

from cwa_daemon.protocol import JobView
from cwa_tui import format as fmt
from cwa_tui.cli.tables import STATE_STYLES
from cwa_tui.state import Row, RunState
from cwa_tui.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic


class RunLine(QuietStatic):
    """In a narrow layout the first two lines are seen, after a failure more."""

    def show_run(self, run: RunState | None, job: JobView | None, now: float) -> None:
        if run is None:
            self.say(Text(""))
            return
        lines = [_where(run, job, now), *_findings(run), _asked(job)]
        self.set_class(run.error is not None, "-explained")
        self.say(Text("\n").join(line for line in lines if line))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """A grid asks with the width of one column; this spans them all."""
        return super().get_content_height(container, viewport, viewport.width - self.gutter.width)


def _where(run: RunState, job: JobView | None, now: float) -> Text:
    state = run.state or (job.state if job else "")
    said = Text.assemble((run.run_id, "bold"), "  ", (state, STATE_STYLES.get(state, "")))
    if not run.ended and run.progress:
        at = run.progress
        said.append(f"  {fmt.progress(at.stage, at.done, at.total, 24, at.unit)}")
    elif not run.ended and run.stage:
        said.append(f"  {run.stage} ...")
    if job and job.started:
        said.append(f"  {fmt.clock((job.finished or now) - job.started)}")
    return said


def _findings(run: RunState) -> list[Text]:
    lines = []
    if run.error:
        lines.append(words(str(run.error["message"])))
        if run.error["hint"]:
            lines.append(words(f"hint: {run.error['hint']}"))
    if run.baseline:
        lines.append(Text(_baseline(run.baseline)))
    elif not run.error and run.lines:
        lines.append(words(run.lines[-1].text))
    return lines


def _baseline(baseline: Row) -> str:
    perplexity = fmt.perplexity(baseline["perplexity"])
    measured = f"{baseline['sequences']} sequences, {baseline['tokens']:,} tokens"
    return f"baseline perplexity {perplexity} ({fmt.number(baseline['nll'])} nats per token) on {measured}"


def _asked(job: JobView | None) -> Text:
    if job is None or job.kind != "run":
        return Text("")
    spec = job.spec
    file = PurePath(spec["data_file"]).name if spec["data_file"] else None
    data = spec.get("data_name") or spec.get("dataset") or file or "built-in texts"
    limit = f", first {spec['eval_limit']}" if spec["eval_limit"] else ""
    fast = ", fast" if spec["fast_perturbation"] else ""
    k = ", ".join(map(str, spec["topk"]))
    return words(f"{job.model} on {job.device} · {', '.join(spec['metrics'])} · k {k} · {data}{limit}{fast}")
