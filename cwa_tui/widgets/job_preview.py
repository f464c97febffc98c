"""The selected job beside the list: what it was asked, its one sentence, and what its log said last."""

from __future__ import annotations

import textwrap

from rich.text import Text

from cwa_daemon.protocol import JobView
from cwa_engine.records.run_id import short_id
from cwa_tui.store.followed_run import FollowedRun
from cwa_tui.store.job_facts import all_asked, sentence
from cwa_tui.tables.columns import shorten
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import visible, words
from cwa_tui.widgets.damage_curve import largest_leading
from cwa_tui.widgets.quiet_lines import QuietLines

MOST_SETS, LEAST_WEIGHTS = 8, 5  # critical sets and top weights that are shown


class JobPreview(QuietLines):
    """With one line it is the job's sentence alone."""

    def show_job(
        self, job: JobView | None, run: FollowedRun | None, now: float, last_known: bool = False, command: str = ""
    ) -> None:
        size = self.content_size
        self.say(preview_lines(job, run, now, size.width, size.height, command) if job else [], last_known)


def preview_lines(
    job: JobView, run: FollowedRun | None, now: float, width: int, height: int, command: str = ""
) -> list[Text]:
    """At most `height` lines of `width` cells: what matters most comes first, the end of the log fills what is left."""
    said = sentence(job)
    if height <= 1:
        return [words(f"{short_id(job.run_id)}  {said or all_asked(job)}")][:height]
    lines = [_head(job, now), *_wrapped(job.run_id, width, "dim"), *_wrapped(f"{job.model} on {job.device}", width)]
    lines += _wrapped(all_asked(job), width)
    lines += _wrapped(f"tags: {' '.join(job.tags)}", width, "bold") if job.tags else []
    lines += _wrapped(f"note: {job.note}", width) if job.note else []
    if error := job.error or job.copy_error:
        lines += [Text(), *_wrapped(error["message"], width, "red")]
        lines += _wrapped(f"hint: {error['hint']}", width) if error.get("hint") else []
    elif said:
        lines += [Text(), *_wrapped(said, width, "bold")]
    if command:
        lines += [Text(), *_wrapped(f"$ {command}", width, "dim")]
    if run:
        for part in (_damage(run, width), _top_weights(run, width, max(LEAST_WEIGHTS, height // 4))):
            lines += [Text(), *part] if part else []
        lines += _log(run, width, height - len(lines))
    return lines[:height]


def _head(job: JobView, now: float) -> Text:
    style = fmt.STATE_STYLES.get(job.state, "")
    head = Text.assemble((short_id(job.run_id), "bold"), "  ", (fmt.signed(job.state), style))
    if took := job.took_s(now):
        head.append(f"  worked {fmt.duration(took)}")
    return head.append(f"  {fmt.age(job.created, now)} ago", "dim")


def _damage(run: FollowedRun, width: int) -> list[Text]:
    """A line for each critical set: its perplexity ratio beside that of the leading draws of its controls, the largest."""
    points = list(run.damage.values())
    critical = [point for point in points if point.selection == "critical"]
    names = [f"{point.metric} k{point.k} {point.perturbation}" for point in critical]
    cells = min(max(map(len, names), default=0), max(8, width - 25))
    lines = []
    for name, point in zip(names, critical, strict=True):
        effect = "collapsed" if point.collapsed_at else fmt.ratio(point.perplexity_ratio)
        line = Text.assemble(f"{shorten(name, cells, 'middle'):{cells}} ", (f"{effect:>10}", "bold"))
        same = (point.metric, point.k, point.perturbation)
        controls = [p for p in points if p.selection != "critical" and (p.metric, p.k, p.perturbation) == same]
        if controls:
            line.append(f" vs {fmt.ratio(largest_leading(controls).perplexity_ratio)}", "dim")
        lines.append(line)
    return [Text("perplexity, times the intact model's", "underline"), *lines[:MOST_SETS]] if lines else []


def _top_weights(run: FollowedRun, width: int, most: int) -> list[Text]:
    """The first weights of the first ranking."""
    for metric, head in run.rankings.items():
        lines = [Text(f"top weights by {metric}" + (" so far" if head.partial else ""), "underline")]
        for weight in head.weights[:most]:
            score = fmt.number(weight.score)
            name = shorten(visible(weight.target), max(8, width - len(score) - 4), "parts")
            lines.append(Text(f"{weight.rank} {name}  {score}"))
        return lines
    return []


def _log(run: FollowedRun, width: int, room: int) -> list[Text]:
    """The end of the log, as much as there is room for."""
    if room < 3 or not run.log.lines:
        return []
    tail = [line for entry in run.log.lines[-room:] for line in _wrapped(entry.text, width, "dim")]
    return [Text(), Text("log", "underline"), *tail[-(room - 2) :]]


def _wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """Lines broken between words, long words within."""
    return [Text(line, style) for line in textwrap.wrap(visible(text), max(8, width))]
