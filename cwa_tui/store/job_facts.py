"""What lists and panes say of a job, in a few words. No Textual in it."""

from __future__ import annotations

from cwa_daemon.protocol import Headline, JobView, StageProgress
from cwa_tui.store.followed_run import FollowedRun
from cwa_tui.store.state import asked_run
from cwa_tui.text import format as fmt

PROGRESS_CELLS = 20


def asked_for(job: JobView) -> str:
    """`grad_x_weight +1 k 10`: the first metric, how many others, and the largest k; of a job that is no run its kind."""
    asked = asked_run(job)
    if asked is None:
        return {
            "load": "only loads",
            "plan": "only plans",
            "pull": "only downloads",
            "inspect": "looks at a weight",
            "weight": "examines a weight",
            "prompt": "answers a prompt",
        }.get(job.kind, job.kind)
    named = ["weights by name"] if asked.gives_weights else []
    names = [*named, *asked.metrics]
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    k = f" k{max(asked.topk)}" if asked.topk and asked.metrics else ""
    return f"{names[0]}{more}{k}" if names else "no metric"


def all_asked(job: JobView) -> str:
    """`grad_x_weight, wanda · k 1, 10 · zero`: all of it."""
    asked = asked_run(job)
    if asked is None:
        return asked_for(job)
    named = ["weights by name"] if asked.gives_weights else []
    parts = [", ".join([*named, *asked.metrics])]
    if asked.metrics:
        parts.append("k " + ", ".join(map(str, asked.topk)))
    parts.append(", ".join(asked.perturbations) if asked.measures_damage else "no damage")
    limit = f", first {asked.text_limit}" if asked.text_limit else ""
    return " · ".join([*(part for part in parts if part), f"{asked.texts}{limit}"])


def ratios(job: JobView) -> str:
    """`x6.55 vs x1.00`: perplexity over the intact model's, of the critical weights and of the worst control's leading draw."""
    found = job.headline
    if found is None:
        return ""
    critical, control = critical_ratio(found), control_ratio(found)
    return f"{critical} vs {control}" if control else critical


def critical_ratio(found: Headline) -> str:
    return "collapsed" if found.collapsed else fmt.ratio(found.ratio)


def control_ratio(found: Headline) -> str:
    """Of the leading draw of the worst control; empty where none was measured."""
    if found.control_collapsed:
        return "collapsed"
    return "" if found.control_ratio is None else fmt.ratio(found.control_ratio)


def result(job: JobView, cells: int = PROGRESS_CELLS) -> str:
    """What came of it, or how far it is, or what it waits for."""
    if error := job.error or job.copy_error:
        return str(error["message"]) if error["message"] != job.state else ""
    if job.progress:
        at = job.progress
        return fmt.progress(at.stage, at.done, at.total, cells, at.unit)
    match job.state:
        case "running":
            return "starting"
        case "queued" | "paused":
            return job.waits_for
        case "done":
            return ratios(job) or {"load": "is warm", "plan": "is planned", "pull": "is on disk"}.get(job.kind, "")
    return ""


def state_and_result(job: JobView, cells: int) -> str:
    """Both in one column: `✓ done x6.55 vs x1.00`, `▶ score 3/40 ███░░░`, `✗ failed: no such model`."""
    sign = fmt.STATE_SIGNS.get(job.state, "?")
    if job.state == "running":
        return f"{sign} {result(job, cells - 2)}" if job.progress else f"{sign} running"
    said = result(job)
    if not said:
        return fmt.signed(job.state)
    return f"{fmt.signed(job.state)}{' ' if job.state == 'done' and not job.copy_error else ': '}{said}"


def newest(job: JobView, followed: FollowedRun | None) -> JobView:
    """The job, with progress and state as its events told them, where these are ahead of the list."""
    if followed is None or followed.last_seq <= job.last_seq or not followed.status.state:
        return job
    at = followed.status.progress
    progress = StageProgress(stage=at.stage, done=at.done, total=at.total, unit=at.unit) if at else None
    ended = followed.status.ended
    return job.model_copy(update={"progress": None if ended else progress, "last_seq": followed.last_seq})


def sentence(job: JobView) -> str:
    """The one sentence that matters of it: verdict, error with its hint, or what it waits for."""
    if error := job.error or job.copy_error:
        hint = f" ({error['hint']})" if error.get("hint") else ""
        return f"{error['message']}{hint}"
    if job.headline and job.headline.sentence:
        return job.headline.sentence
    return f"waits: {job.waits_for}" if job.waits_for else ""
