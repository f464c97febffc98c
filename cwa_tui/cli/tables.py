"""Tables of the command line. Each takes views of the daemon and gives something rich can print."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_daemon.protocol import DeviceMemory, JobView, StatusView, WarmModel
from cwa_engine.base.plain import JsonMap
from cwa_engine.guide.catalog import CatalogModel
from cwa_engine.rows import MATRICES, exp, to_plain
from cwa_tui import format as fmt
from cwa_tui.answer_tables import TABLE
from cwa_tui.visible import words


def jobs_table(jobs: list[JobView], now: float | None = None, chosen: bool = False) -> RenderableType:
    """The job list, latest first; `chosen` if only some were asked for."""
    if not jobs:
        return (
            Text("no such job; `cwtool jobs` lists all")
            if chosen
            else Text("no jobs yet; `cwtool run --model smollm2-135m` makes one")
        )
    table = Table(**TABLE)
    for name in ("run id", "what", "state", "progress", "created", "took"):
        table.add_column(name, no_wrap=name == "run id", overflow="fold")
    for job in jobs:
        took = (job.finished or now or time.time()) - job.started if job.started else None
        at = job.progress
        done = f"{at.stage} {fmt.counted(at.done, at.total, at.unit)}" if at else ""
        state = Text(job.state, fmt.STATE_STYLES.get(job.state, ""))
        error = job.error or job.copy_error
        said = words(error["message"] if error else done)
        table.add_row(job.run_id, job.kind, state, said, fmt.ago(job.created, now), fmt.duration(took))
    return table


def job_details(job: JobView) -> RenderableType:
    """One job, field by field."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    error = job.error or job.copy_error
    rows = {
        "run id": job.run_id,
        "what": f"{job.kind} {job.model}",
        "state": job.state,
        "device": job.device,
        "created": _moment(job.created),
        "started": _moment(job.started),
        "finished": _moment(job.finished),
        "owner": job.owner or None,
        "retry of": job.retry_of,
        "after": job.after,
        "priority": job.priority or None,
        "files": job.folder,
        "error": error["message"] if error else None,
        "hint": error["hint"] if error else None,
        "deaths": "; ".join(f"{death['reason']} (in {death['stage']})" for death in job.deaths),
        "spec": ", ".join(f"{name}={value}" for name, value in job.spec.items() if value is not None),
    }
    for name, value in rows.items():
        if value and value != "-":
            table.add_row(Text(name, "dim"), words(str(value), overflow="fold"))
    return table


def warm_models(status: StatusView) -> RenderableType:
    """The warm models, and how full the memory of each device is."""
    if not status.models:
        shown: RenderableType = Text("no model is warm")
    else:
        table = Table(**TABLE)
        for name in ("model", "revision", "dtype", "device", "size", "jobs", "last used", "expires"):
            table.add_column(name, justify="right" if name in ("size", "jobs") else "left", overflow="fold")
        for m in status.models:
            revision = (m.revision or "-")[:12]
            used = fmt.ago(m.last_used)
            row = m.name, revision, m.dtype, m.device, fmt.size(m.size_bytes), str(m.jobs_served)
            table.add_row(*row, "in use" if m.in_use else used, _expiry(m))
        shown = table
    return Group(shown, *(words(_memory(device), "dim") for device in status.devices))


def _expiry(model: WarmModel) -> str:
    if model.pinned:
        return "pinned"
    return "never" if model.expires is None else f"in {fmt.duration(max(0.0, model.expires - time.time()))}"


def _memory(device: DeviceMemory) -> str:
    others = "" if device.others_bytes is None else f", {fmt.size(device.others_bytes)} of it by others"
    return f"{device.device}: {fmt.size(device.used_bytes)} of {fmt.size(device.total_bytes)} used{others}"


def daemon_status(status: StatusView, reached: str) -> RenderableType:
    """The daemon and its workers; `reached` says how this client reaches it."""
    lines = [
        f"cwtool {status.version}, pid {status.pid}, up {fmt.duration(status.uptime_s)}, {fmt.size(status.memory_bytes)}",
        f"state folder {status.home}, reached as {reached}",
        f"{_some(status.running)} running, {_some(status.queued)} queued, {_some(status.paused)} paused, "
        f"{len(status.models)} warm",
        *(f"trouble: {trouble}" for trouble in status.troubles),
        *_limits(status.limits),
        *(["the disk is full: progress is not kept, results wait for room"] if status.disk_full else []),
        *(
            f"worker {w.device}: {w.state}{f' with {w.run_id}' if w.run_id else ''}, pid {w.pid}, {fmt.size(w.memory_bytes)}"
            for w in status.workers
            if w.pid
        ),
    ]
    return words("\n".join(lines), overflow="fold")


def _some(count: int | None) -> str:
    """A number of jobs; "?" while the job database is damaged."""
    return "?" if count is None else str(count)


def _limits(limits: dict[str, float | None]) -> list[str]:
    """One line, or none if the daemon does not give its limits."""
    if not limits:
        return []
    load_bytes = limits.get("load_bytes")
    memory = "what is available" if load_bytes is None else fmt.size(int(load_bytes))
    idle, step = (fmt.duration(limits[name] or 0) for name in ("stage_idle_s", "stage_step_s"))
    return [f"limits: a load {memory} of memory, a stage {idle} of idling and {step} of computing without getting on"]


def results_table(summaries: list[JsonMap]) -> RenderableType:
    """Finished runs, one line each, with the damage of their largest k."""
    if not summaries:
        return Text("no finished runs yet; `cwtool run --model smollm2-135m` makes one")
    table = Table(**TABLE)
    table.add_column("run id", no_wrap=True, min_width=max(len(summary["run_id"]) for summary in summaries))
    for name in ("metrics", "baseline", "k", "critical", "random"):
        table.add_column(name, justify="left" if name == "metrics" else "right", overflow="fold")
    for summary in summaries:
        if "unreadable" in summary:
            table.add_row(words(summary["run_id"]), words(summary["unreadable"], "yellow"))
            continue
        names = (ranking["metric"] for ranking in summary["rankings"])
        metrics = ", ".join(name for name in names if not name.endswith(MATRICES))
        baseline = fmt.perplexity(summary["baseline"]["perplexity"])
        table.add_row(words(summary["run_id"]), metrics, baseline, *_largest_damage(summary))
    return table


def _largest_damage(summary: JsonMap) -> tuple[str, str, str]:
    compared = [group for group in summary["damage"] if group["controls"]]
    if not compared:
        return "-", "-", "-"
    group = max(compared, key=lambda entry: entry["k"])
    random = next((c for c in group["controls"] if c["control"] == "random"), None)
    critical = "collapsed" if group["critical"]["collapsed_at"] else fmt.ratio(group["critical"]["perplexity_ratio"])
    largest = random["largest"] if random else None
    control = "-" if largest is None else fmt.ratio(to_plain(exp(largest)))
    return str(group["k"]), critical, control


def catalog_table(entries: list[CatalogModel], cached: dict[str, int]) -> RenderableType:
    """The models of the guide with their size on disk, then models on disk that the guide does not know."""
    table = Table(**TABLE)
    for name in ("model", "family", "weights", "licence", "token", "on disk"):
        table.add_column(name, justify="right" if name in ("weights", "on disk") else "left", overflow="fold")
    for entry in entries:
        name = f"{entry.alias} ({entry.name})" if entry.alias else entry.name
        disk = fmt.size(cached[entry.name]) if entry.name in cached else "-"
        weights, token = fmt.millions(entry.parameters_m), "HF_TOKEN" if entry.gated else ""
        table.add_row(name, entry.family, weights, entry.licence, token, disk)
    for name in sorted(set(cached) - {entry.name for entry in entries}):
        table.add_row(name, "-", "-", "-", "", fmt.size(cached[name]))
    return table


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
