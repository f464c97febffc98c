"""Tables of the command line. Each takes views of the daemon and gives something rich can print."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_daemon.protocol import DeviceMemory, Headline, JobView, StatusView, WarmModel, WorkerView
from cwa_engine.base.plain import JsonMap
from cwa_engine.rows import MATRICES
from cwa_tui.cli.lines import RUN_ID, Field, LineTable, Row
from cwa_tui.store.job_facts import control_ratio, critical_ratio
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words


def jobs_table(jobs: Sequence[JobView], now: float | None = None) -> LineTable:
    """Jobs, one line each: whether they wait, run or have ended, and what there is to say of that."""
    now = now or time.time()
    several_kinds = len({job.kind for job in jobs}) > 1
    fields = [
        Field(RUN_ID),
        *([Field("kind")] if several_kinds else []),
        Field("state"),
        Field("model", least=10, cut="start"),
        Field("what", least=18, optional=2),
        Field("age", right=True),
        Field("took", optional=1, right=True),
        *([Field("tags", least=8, optional=3)] if any(job.tags for job in jobs) else []),
        Field("note", least=32),
    ]
    return LineTable(fields, [_job_row(job, now) for job in jobs])


def _job_row(job: JobView, now: float) -> Row:
    style = fmt.STATE_STYLES.get(job.state, "")
    cells = {
        RUN_ID: job.run_id,
        "kind": job.kind,
        "state": fmt.signed(job.state),
        "model": job.model,
        "what": asked(job.spec) if job.kind == "run" else "",
        "age": fmt.age(job.created, now),
        "took": fmt.clock(job.took_s(now)) if job.started else "",
        "tags": " ".join(job.tags),
        "note": _note(job),
    }
    error = job.error or job.copy_error
    return Row(cells, {"state": style, "note": style if error else ""})


def asked(spec: JsonMap) -> str:
    """What a spec asks for: `grad_x_weight, obd · k 10 100 · zero`."""
    metrics = ", ".join(spec.get("metrics") or ["given weights"])
    sizes = " ".join(map(str, spec.get("topk") or ()))
    damage = ", ".join(spec.get("perturbations") or ()) or "no damage"
    return f"{metrics} · k {sizes} · {damage}"


def _note(job: JobView) -> str:
    """Why a job failed or what it waits for, how far it is, or what it found."""
    if error := job.error or job.copy_error:
        return str(error["message"])
    if job.ended:
        return _headline(job.headline) if job.headline else ""
    if job.progress and job.running_since is not None:
        at = job.progress
        return f"{at.stage} {fmt.counted(at.done, at.total, at.unit)}"
    return job.waits_for


def _headline(found: Headline) -> str:
    """`k 100 x4.62, control x1.0002, harmful`."""
    control = f", control {beside}" if (beside := control_ratio(found)) else ""
    return f"k {found.k} {critical_ratio(found)}{control}{f', {found.outcome}' if found.outcome else ''}"


def job_details(job: JobView) -> RenderableType:
    """One job, field by field."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    error = job.error or job.copy_error
    rows = {
        "run id": job.run_id,
        "what": f"{job.kind} {job.model}",
        "state": fmt.signed(job.state),
        "device": job.device,
        "created": _moment(job.created),
        "started": _moment(job.started),
        "finished": _moment(job.finished),
        "took": fmt.duration(job.took_s(time.time())) if job.started else None,
        "waits": job.waits_for,
        "found": job.headline.sentence if job.headline else None,
        "owner": job.owner or None,
        "retry of": job.retry_of,
        "after": job.after,
        "priority": job.priority or None,
        "files": job.folder,
        "tags": " ".join(job.tags),
        "note": job.note,
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
    """The warm models, one line each, how full the memory of each device is, and of several lanes what each does."""
    fields = [
        Field("model", least=30, cut="start"),
        Field("size", right=True),
        Field("device"),
        Field("expires", optional=1),
        Field("last used", optional=2),
        Field("dtype", optional=3),
        Field("jobs", optional=4, right=True),
        Field("revision", optional=5),
    ]
    rows = [Row(_warm_cells(model)) for model in status.models]
    shown: RenderableType = LineTable(fields, rows) if rows else Text("no model is warm")
    lanes = status.lanes if len(status.lanes) > 1 else []
    below = [*map(_memory, status.devices), *map(_lane, lanes)]
    return Group(shown, *(words(line, "dim") for line in below))


def _warm_cells(model: WarmModel) -> dict[str, str]:
    return {
        "model": model.name,
        "size": fmt.size(model.size_bytes),
        "device": model.device,
        "expires": _expiry(model),
        "last used": "in use" if model.in_use else fmt.ago(model.last_used),
        "dtype": model.dtype,
        "jobs": str(model.jobs_served),
        "revision": (model.revision or "-")[:12],
    }


def _expiry(model: WarmModel) -> str:
    if model.pinned:
        return "pinned"
    return "never" if model.expires is None else f"in {fmt.duration(max(0.0, model.expires - time.time()))}"


def _memory(device: DeviceMemory) -> str:
    others = "" if device.others_bytes is None else f", {fmt.size(device.others_bytes)} of it by others"
    return f"{device.device}: {fmt.size(device.used_bytes)} of {fmt.size(device.total_bytes)} used{others}"


def _lane(lane: WorkerView) -> str:
    """`lane cpu:1: busy with 20261126-...`, or `idle`, or that it has no worker yet."""
    if lane.pid is None:
        return f"lane {lane.device}: its worker starts with its next job"
    return f"lane {lane.device}: {lane.state}{f' with {lane.run_id}' if lane.run_id else ''}, {fmt.size(lane.memory_bytes)}"


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


def results_table(jobs: Sequence[JobView], summaries: Sequence[JsonMap], now: float | None = None) -> LineTable:
    """Finished runs with their summaries, one line each: the damage of the largest k, and what it was compared with."""
    fields = [
        Field(RUN_ID),
        Field("model", least=10, cut="start"),
        Field("metrics", least=13),
        Field("k", right=True),
        Field("critical", right=True),
        Field("control", right=True),
        Field("verdict", optional=1),
        Field("age", optional=2, right=True),
        Field("baseline", optional=3, right=True),
        *([Field("tags", least=8, optional=4)] if any(job.tags for job in jobs) else []),
    ]
    now = now or time.time()
    return LineTable(fields, [_result_row(job, summary, now) for job, summary in zip(jobs, summaries, strict=True)])


def _result_row(job: JobView, summary: JsonMap, now: float) -> Row:
    if "unreadable" in summary:
        return Row({RUN_ID: job.run_id}, {"": "yellow"}, sentence=f"! {summary['unreadable']}")
    if job.state != "done":
        return Row(
            {RUN_ID: job.run_id}, {"": fmt.STATE_STYLES.get(job.state, "")}, f"{fmt.signed(job.state)} {_note(job)}"
        )
    names = (ranking["metric"] for ranking in summary["rankings"])
    cells = {
        RUN_ID: job.run_id,
        "model": job.model,
        "metrics": ", ".join(name for name in names if not name.endswith(MATRICES)),
        "age": fmt.age(job.created, now),
        "tags": " ".join(job.tags),
        "baseline": fmt.perplexity(summary["baseline"]["perplexity"]),
    }
    damage = {"k": "-", "critical": "-", "control": "-", "verdict": ""}
    if found := job.headline:
        damage = {
            "k": str(found.k),
            "critical": critical_ratio(found),
            "control": control_ratio(found) or "-",
            "verdict": found.outcome,
        }
    return Row({**cells, **damage})


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
