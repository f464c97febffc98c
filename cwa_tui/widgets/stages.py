"""The stages of a run: which are done and took how long, which is under way and may take how long."""

from __future__ import annotations

from rich.text import Text

from cwa_daemon.protocol import TERMINAL_STATES
from cwa_tui.store.stage_times import Stages, StageTime
from cwa_tui.text import format as fmt
from cwa_tui.widgets.quiet_static import QuietStatic


class StageLine(QuietStatic):
    """`✓ load 1.21 s  ✓ baseline 12 s  ▶ score 40/120 ███░░░ 0:34, about 1:08 left`, or `✓ 2 stages 13 s` in short."""

    def show_stages(self, stages: Stages, state: str, now: float, in_short: bool) -> None:
        """Show all stages, `in_short` those that are done as one, and none of a run that has ended."""
        done = [stage for stage in stages.values() if stage.seconds is not None]
        if in_short and state in TERMINAL_STATES:
            parts = []
        elif in_short and len(done) > 1:
            whole = _done(f"{len(done)} stages", sum(stage.elapsed(now) for stage in done))
            parts = [whole, *(_stage(stage, state, now) for stage in stages.values() if stage not in done)]
        else:
            parts = [_stage(stage, state, now) for stage in stages.values()]
        said = Text("  ").join(parts)
        self.display = bool(said.plain)
        self.say(said)


def _stage(stage: StageTime, state: str, now: float) -> Text:
    if stage.seconds is not None:
        return _done(stage.name, stage.seconds)
    if state != "running":  # it was cut short
        return Text(f"{fmt.STATE_SIGNS.get(state, '')} {stage.name}".strip())
    at = stage.progress
    said = fmt.progress(stage.name, at.done, at.total, 30, at.unit) if at else f"{stage.name} ..."
    left = stage.left(now)
    rest = "" if left is None else f", about {fmt.clock(left)} left"
    return Text.assemble((f"{fmt.STATE_SIGNS['running']} {said}", "bold"), f" {fmt.clock(stage.elapsed(now))}{rest}")


def _done(name: str, seconds: float) -> Text:
    return Text.assemble((fmt.STATE_SIGNS["done"], "green"), f" {name} ", (fmt.duration(seconds), "dim"))
