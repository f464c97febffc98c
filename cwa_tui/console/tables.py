"""Tables of the command line. Each takes plain views and gives something rich can print."""

from __future__ import annotations

import time
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_daemon.protocol import JobView, StatusView
from cwa_engine.catalog import CatalogModel
from cwa_engine.result import exp, to_plain
from cwa_tui import format as fmt

STATE_STYLES = {"done": "green", "failed": "red", "running": "cyan", "cancelled": "yellow", "interrupted": "yellow"}


def run_report(summary: dict[str, Any], folder: str) -> RenderableType:
    """All that a finished run has to say: what was measured, the top weights, the damage, where the files are."""
    parts: list[RenderableType] = [_headline(summary)]
    for ranking in summary["rankings"]:
        parts += ["", topk_table(ranking["metric"], ranking["top"])]
    if summary["damage"]:
        parts += ["", _damage(summary), *_notes(summary)]
    parts += ["", Text(f"files: {folder}", overflow="fold")]
    return Group(*parts)


def _headline(summary: dict[str, Any]) -> Text:
    model, texts, baseline = summary["model"], summary["texts"], summary["baseline"]
    used = "the same text scored and measured" if texts["shared"] else f"{texts['scoring']} texts scored"
    measured = texts["damage"] or texts["evaluation"]
    split = used if texts["shared"] else f"{used}, {measured} others measured"
    return Text(
        f"{model['name']} · {model['parameters']:,} weights · {model['dtype']} on {model['device']} · {split}\n"
        f"baseline perplexity {fmt.perplexity(baseline['perplexity'])} · {baseline['nll']:.4f} nats per token · "
        f"{baseline['bits_per_byte']:.3f} bits per byte · {baseline['tokens']:,} tokens"
    )


def topk_table(metric: str, weights: list[dict[str, Any]]) -> Table:
    """Ranked weights, fields as in `TopWeight`."""
    table = Table(title=f"critical weights by {metric}", **_TABLE)
    for name in ("rank", "weight", "value", "score", "layer", "component"):
        table.add_column(name, justify="left" if name in ("weight", "component") else "right", overflow="fold")
    for weight in weights:
        layer = "-" if weight["layer"] is None else str(weight["layer"])
        figures = fmt.number(weight["value"]), fmt.number(weight["score"])
        table.add_row(str(weight["rank"]), weight["target"], *figures, layer, weight["component"])
    return table


def _damage(summary: dict[str, Any]) -> Table:
    """One line for the critical set and one for the mean draw of each control."""
    perturbations = list(dict.fromkeys(group["perturbation"] for group in summary["damage"]))
    table = Table(title=f"damage ({', '.join(perturbations)})", **_TABLE)
    shown = ["metric"] * (len(summary["rankings"]) > 1) + ["perturbation"] * (len(perturbations) > 1)
    for name in shown:
        table.add_column(name)
    table.add_column("k", justify="right")
    table.add_column("selection")
    for name in ("perplexity", "ratio", "Δ nats/token"):
        table.add_column(name, justify="right")
    table.add_column("95 % interval")
    table.add_column("separation", justify="right")
    base = summary["baseline"]["nll"]
    for group in summary["damage"]:
        lead = [group[name] for name in shown]
        critical = group["critical"]
        if critical["collapsed_at"]:
            table.add_row(*lead, str(group["k"]), Text("critical", "bold"), f"collapsed at {critical['collapsed_at']}")
        else:
            damage = critical["delta_nll"], critical["delta_low"], critical["delta_high"]
            cells = _damage_cells(base, *damage)
            table.add_row(*lead, str(group["k"]), Text("critical", "bold"), *cells, "")
        for control in group["controls"]:
            damage = control["control_delta"], control["control_low"], control["control_high"]
            cells = ("collapsed", "", "", "") if damage[0] is None else _damage_cells(base, *damage)
            name = f"{control['control']}, mean of {control['draws']}"
            table.add_row(*[""] * len(shown), "", name, *cells, _separation(control["ratio"]), style="dim")
        table.add_section()
    return table


def _damage_cells(base: float, delta: float, low: float, high: float) -> tuple[str, str, str, str]:
    perplexity, ratio = to_plain(exp(base + delta)), to_plain(exp(delta))
    return fmt.perplexity(perplexity), fmt.ratio(ratio), fmt.delta(delta), fmt.interval(low, high)


def _separation(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:,.0f}" if abs(ratio) >= 100 else f"{ratio:.1f}"


def _notes(summary: dict[str, Any]) -> list[Text]:
    lines = [
        "ratio: perplexity over the baseline's; separation: Δ of the critical set over the mean |Δ| of the control's draws",
    ]
    if summary["texts"]["shared"]:
        lines.append("there was only one text: weights were scored and damage was measured on the same one")
    return [Text(line, style="dim") for line in lines]


def jobs_table(jobs: list[JobView], now: float | None = None) -> RenderableType:
    """The job list, latest first."""
    if not jobs:
        return Text("no jobs yet; `cwtool run --model smollm2-135m` makes one")
    table = Table(**_TABLE)
    for name in ("run id", "what", "state", "progress", "created", "took"):
        table.add_column(name, no_wrap=name == "run id", overflow="fold")
    for job in jobs:
        took = (job.finished or now or time.time()) - job.started if job.started else None
        done = f"{job.progress.stage} {job.progress.done}/{job.progress.total}" if job.progress else ""
        state = Text(job.state, STATE_STYLES.get(job.state, ""))
        said = Text(job.error["message"] if job.error else done)
        table.add_row(job.run_id, job.kind, state, said, fmt.ago(job.created, now), fmt.duration(took))
    return table


def job_details(job: JobView) -> RenderableType:
    """One job, field by field."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows = {
        "run id": job.run_id,
        "what": f"{job.kind} {job.model}",
        "state": job.state,
        "device": job.device,
        "created": _moment(job.created),
        "started": _moment(job.started),
        "finished": _moment(job.finished),
        "retry of": job.retry_of,
        "files": job.folder,
        "error": job.error["message"] if job.error else None,
        "hint": job.error["hint"] if job.error else None,
        "spec": ", ".join(f"{name}={value}" for name, value in job.spec.items() if value is not None),
    }
    for name, value in rows.items():
        if value and value != "-":
            table.add_row(Text(name, "dim"), Text(str(value), overflow="fold"))
    return table


def warm_models(status: StatusView) -> RenderableType:
    """What is held in memory, and how full the devices are."""
    if not status.models:
        shown: RenderableType = Text("no model is warm")
    else:
        table = Table(**_TABLE)
        for name in ("model", "revision", "dtype", "device", "size", "jobs", "last used"):
            table.add_column(name, justify="right" if name in ("size", "jobs") else "left", overflow="fold")
        for m in status.models:
            revision = (m.revision or "-")[:12]
            used = fmt.ago(m.last_used)
            table.add_row(m.name, revision, m.dtype, m.device, fmt.size(m.size_bytes), str(m.jobs_served), used)
        shown = table
    memory = [
        Text(f"{d.device}: {fmt.size(d.used_bytes)} of {fmt.size(d.total_bytes)} used", style="dim")
        for d in status.devices
    ]
    return Group(shown, *memory)


def daemon_status(status: StatusView) -> RenderableType:
    """The daemon and its workers."""
    lines = [
        f"cwtool {status.version}, pid {status.pid}, up {fmt.duration(status.uptime_s)}, {fmt.size(status.memory_bytes)}",
        f"state folder {status.home}",
        f"{status.running} running, {status.queued} queued, {len(status.models)} warm",
        *(
            f"worker {w.device}: {w.state}{f' with {w.run_id}' if w.run_id else ''}, pid {w.pid}, {fmt.size(w.memory_bytes)}"
            for w in status.workers
            if w.pid
        ),
    ]
    return Text("\n".join(lines), overflow="fold")


def results_table(summaries: list[dict[str, Any]]) -> RenderableType:
    """Finished runs, one line each, with the damage of their largest k."""
    if not summaries:
        return Text("no finished runs yet; `cwtool run --model smollm2-135m` makes one")
    table = Table(**_TABLE)
    for name in ("run id", "metrics", "baseline", "k", "critical", "random"):
        table.add_column(name, justify="left" if name in ("run id", "metrics") else "right", overflow="fold")
    for summary in summaries:
        metrics = ", ".join(ranking["metric"] for ranking in summary["rankings"])
        baseline = fmt.perplexity(summary["baseline"]["perplexity"])
        table.add_row(Text(summary["run_id"], no_wrap=True), metrics, baseline, *_largest_damage(summary))
    return table


def _largest_damage(summary: dict[str, Any]) -> tuple[str, str, str]:
    if not summary["damage"]:
        return "-", "-", "-"
    group = max(summary["damage"], key=lambda entry: entry["k"])
    random = next((c for c in group["controls"] if c["control"] == "random"), None)
    critical = "collapsed" if group["critical"]["collapsed_at"] else fmt.ratio(group["critical"]["perplexity_ratio"])
    control = (
        "-" if random is None or random["control_delta"] is None else fmt.ratio(to_plain(exp(random["control_delta"])))
    )
    return str(group["k"]), critical, control


def catalog_table(entries: list[CatalogModel], cached: dict[str, int]) -> RenderableType:
    """The model guide with what is on disk already, and cached models the guide does not know."""
    table = Table(**_TABLE)
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


_TABLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold", "pad_edge": False}
