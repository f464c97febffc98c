"""The selected job beside the list: what it was asked, its one sentence, and what its log said last."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cwa_daemon.protocol import JobView
from cwa_tui import format as fmt
from cwa_tui.followed_run import FollowedRun
from cwa_tui.job_facts import all_asked, ratios, sentence
from cwa_tui.visible import visible, words
from cwa_tui.widgets.quiet_lines import QuietLines

_BAR_CELLS = 24


class JobPreview(QuietLines):
    """With one line it is the job's sentence alone."""

    def show_job(
        self, job: JobView | None, run: FollowedRun | None, now: float, last_known: bool = False, command: str = ""
    ) -> None:
        size = self.content_size
        lines = preview_lines(job, run, now, size.width, size.height, command) if job else []
        self.say(lines, last_known)


def preview_lines(
    job: JobView, run: FollowedRun | None, now: float, width: int, height: int, command: str = ""
) -> list[Text]:
    """At most `height` lines of `width` cells."""
    said = sentence(job)
    if height <= 1:
        return [words(f"{fmt.short_id(job.run_id)}  {said or all_asked(job)}")][:height]
    lines = [_head(job, now), *_wrapped(job.run_id, width, "dim"), *_wrapped(f"{job.model} on {job.device}", width)]
    lines += _wrapped(all_asked(job), width)
    if said:
        lines += [Text(), *_wrapped(said, width, "red" if job.error or job.copy_error else "bold")]
    lines += _ratios(job, width)
    if command:
        lines += [Text(), *_wrapped(f"$ {command}", width, "dim")]
    if run and run.log.lines:
        room = height - len(lines) - 1
        tail = [line for entry in run.log.lines[-max(0, room) :] for line in _wrapped(entry.text, width)]
        lines += [Text(), *tail[-room:]] if room > 0 else []
    return lines[:height]


def _head(job: JobView, now: float) -> Text:
    style = fmt.STATE_STYLES.get(job.state, "")
    head = Text.assemble((fmt.short_id(job.run_id), "bold"), "  ", (fmt.signed(job.state), style))
    if took := job.took_s(now):
        head.append(f"  {'worked' if job.ended else 'works since'} {fmt.duration(took)}")
    return head.append(f"  {fmt.age(job.created, now)} ago", "dim")


def _ratios(job: JobView, width: int) -> list[Text]:
    """Bars of log ratios, critical beside control, where both are known."""
    found = job.headline
    if found is None:
        return []
    about = f"{found.metric} k{found.k} {found.perturbation}: "
    return [Text(), *_wrapped(f"{about}{ratios(job)}", width)]


def _wrapped(text: str, width: int, style: str = "") -> list[Text]:
    """Lines broken between words, long words within."""
    import textwrap

    return [Text(line, style) for line in textwrap.wrap(visible(text), max(8, width))]


def one_line(lines: Sequence[Text]) -> Text:
    return Text(" ").join(lines)
