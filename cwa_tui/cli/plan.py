"""The plan of a run as people read it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.rows import Plan
from cwa_tui.tables.answers import TABLE
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

_GRADIENTS = {
    "resident": "of all weights",
    "sweep": "of one block",
    "offload": "of one block, the others in CPU memory",
}
_FITS = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("-", "dim")}


def _free(plan: Plan) -> str:
    if plan.free_bytes is None:
        return "not on this machine"
    more = plan.reclaimable_bytes
    said = f", {fmt.size(more)} more if warm models are unloaded" if more else ""
    return f"{fmt.size(plan.free_bytes)} free{said}"


def _beside(plan: Plan) -> str:
    """What is in the peak beside weights and work; empty on a device that holds nothing else."""
    beside = max((row.total_bytes - row.weights_bytes - row.working_bytes for row in plan.rows), default=0)
    return f"peak: weights, work, and {fmt.size(beside)} that a worker takes by itself" if beside > 0 else ""


def plan_report(plan: Plan) -> RenderableType:
    """What every way of scoring needs, and the one that is recommended."""
    head = words(
        f"{plan.model} · {plan.parameters:,} weights · {plan.sequences} texts to score, "
        f"the longest of {plan.longest} tokens · {', '.join(plan.metrics)}\n"
        f"{plan.device}: {_free(plan)}"
    )
    table = Table(title="memory", **TABLE)
    for name in ("dtype", "gradients at once", "weights", "work", "peak", "batch", "fits"):
        table.add_column(name, justify="left" if name in ("dtype", "gradients at once", "fits") else "right")
    for row in plan.rows:
        dtype = "bfloat16, float16" if row.dtype == "bfloat16" else row.dtype
        sizes = (fmt.size(size) for size in (row.weights_bytes, row.working_bytes, row.total_bytes))
        waiting = f" ({fmt.size(row.cpu_bytes)})" if row.cpu_bytes else ""
        table.add_row(dtype, _GRADIENTS[row.gradients] + waiting, *sizes, str(row.batch_size), _FITS[row.fits])
    captions = [
        ""
        if all(row.simulated for row in plan.rows)
        else "roughly: to count more closely is not possible without the weights, or takes too long",
        _beside(plan),
    ]
    table.caption = "; ".join(filter(None, captions)) or None
    command = words(plan.command, "bold", overflow="fold") if plan.command else Text("no command", "bold red")
    note: list[RenderableType] = [words(plan.note, "yellow"), ""] if plan.note else []
    return Group(head, "", *note, table, "", words(plan.why), command, *_others(plan))


def _others(plan: Plan) -> list[RenderableType]:
    """What else there is to choose from, each with what it needs."""
    lines: list[RenderableType] = []
    for option in plan.options:
        if option.command == plan.command:
            continue
        waiting = f" and {fmt.size(option.cpu_bytes)} of CPU memory" if option.cpu_bytes else ""
        lines += [words(f"or {option.why}: {fmt.size(option.needed_bytes)}{waiting}"), words(option.command, "dim")]
    return ["", *lines] if lines else []
