"""What runs now, with its stage, how long it still takes and what it has measured so far; and what waits, and for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from cwa_daemon.protocol import JobView
from cwa_engine.records.run_id import short_id
from cwa_engine.rows import DamagePoint
from cwa_tui.store.followed_run import FollowedRun
from cwa_tui.store.job_facts import asked_for
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_lines import QuietLines

_BAR_CELLS = 40
_IDLE = "nothing runs and nothing waits"


class ActiveJobs(QuietLines):
    """The jobs that have not ended, of every kind."""

    def show_active(
        self,
        jobs: Sequence[JobView],
        more: int,
        runs: Mapping[str, FollowedRun],
        now: float,
        height: int,
        last_known: bool = False,
    ) -> None:
        """`more` wait beside those given; `height` is the most lines there are."""
        self.say(active_lines(jobs, more, runs, now, self.content_size.width, height), last_known)


def active_lines(
    jobs: Sequence[JobView],
    more: int,
    runs: Mapping[str, FollowedRun],
    now: float,
    width: int,
    height: int,
) -> list[Text]:
    """Two lines for each job that runs, then one for each that waits, as far as there is room.

    `more` wait beside these; how many are left out is said.
    """
    running = [job for job in jobs if job.state == "running"]
    waiting = [job for job in jobs if job.state != "running"]
    if not jobs:
        return [Text(_IDLE, "dim")]
    lines = [line for job in running for line in _running(job, runs.get(job.run_id), now, width)]
    room = height - len(lines)
    shown = waiting if len(waiting) <= room and not more else waiting[: max(0, room - 1)]
    lines += [_waiting(job, now) for job in shown]
    if left_out := len(waiting) - len(shown) + more:
        lines.append(Text(f"  and {left_out:,} more", "dim"))
    return lines[: max(0, height)]


def _running(job: JobView, run: FollowedRun | None, now: float, width: int) -> list[Text]:
    at = job.progress
    first = _head(job)
    first.append(f"  {fmt.clock(job.took_s(now))}", "bold")
    if ":" in job.device:  # one of several lanes
        first.append(f"  on {job.device}", "dim")
    if at is None:
        stage = run.status.stage if run and run.status.stage else ""
        first.append(f"  {stage} ..." if stage else f"  {job.waits_for or 'starting'}")
    found = _found(run) if run else ""
    second = Text("  ")
    if at is not None:
        stage_time = run.stages.get(at.stage) if run else None
        left = stage_time.left(now) if stage_time else None
        foretold = f"  about {fmt.clock(left)} left" if left is not None else ""
        room = width - 2 - len(foretold) - (len(found) + 2 if found else 0)
        second.append(fmt.progress(at.stage, at.done, at.total, max(room, 20), at.unit, _BAR_CELLS), "cyan")
        second.append(foretold)
        found = f"  {found}" if found else ""
    second.append(found, "bold")
    return [first, second] if second.plain.strip() else [first]


def _waiting(job: JobView, now: float) -> Text:
    line = _head(job)
    reason = "paused" if job.state == "paused" else f"waits: {job.waits_for}" if job.waits_for else "waits"
    line.append(f"  {reason}")
    return line.append(f"  for {fmt.age(job.created, now)}", "dim")


def _head(job: JobView) -> Text:
    """`▶ k7q2 gpt2 grad_x_weight k10`."""
    sign = fmt.STATE_SIGNS.get(job.state, "?")
    head = Text.assemble((f"{sign} {short_id(job.run_id)} ", fmt.STATE_STYLES.get(job.state, "")), no_wrap=True)
    if job.kind == "run":
        return head.append_text(words(job.model, "bold")).append(f"  {asked_for(job)}")
    return head.append(f"{job.kind} ").append_text(words(job.model, "bold"))


def _found(run: FollowedRun) -> str:
    """What it has measured so far: the intact model's perplexity, and the latest damage by critical weights."""
    baseline = run.status.baseline
    if baseline is None:
        return ""
    said = f"perplexity {fmt.perplexity(baseline.perplexity)}"
    critical = [point for point in run.damage.values() if point.selection == "critical"]
    return f"{said}, {_damage(critical[-1])}" if critical else said


def _damage(point: DamagePoint) -> str:
    effect = "collapsed" if point.collapsed_at else fmt.ratio(point.perplexity_ratio)
    return f"{effect} by {point.perturbation} k{point.k}"
