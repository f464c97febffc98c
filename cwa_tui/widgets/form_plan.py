"""What a run needs, as the daemon planned it: whether it fits, how gradients are computed, and how much memory that takes."""

from __future__ import annotations

from rich.text import Text

from cwa_engine.rows import Plan, PlanRow
from cwa_engine.spec import RunSpec
from cwa_tui import format as fmt
from cwa_tui.draft import Problem
from cwa_tui.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

_GRADIENTS = {
    "resident": "of all weights",
    "sweep": "of one block",
    "offload": "of one block, the others in CPU memory",
}
_FITS = {True: "✓ fits", False: "✗ too large", None: "not known here"}


class FormPlan(QuietStatic):
    """One line at the top says it; a wide terminal shows the memory of each dtype below."""

    def tell(self, text: str) -> None:
        """What happens to the plan, where there is none yet."""
        self.say(Text.assemble(("plan  ", "bold"), words(text)))

    def refuse(self, problem: Problem) -> None:
        said = Text.assemble(("plan  ✗ ", "bold"), words(problem.message))
        self.say(said.append(f"\n{words(problem.hint)}" if problem.hint else ""))

    def show(self, plan: Plan, spec: RunSpec, outdated: bool) -> None:
        """Show the plan of a run with this spec; an outdated one says so."""
        text = Text.assemble(
            ("plan  ", "bold"), "of what was typed before: " if outdated else "", words(headline(plan, spec))
        )
        text.append("\n").append_text(
            words(f"{plan.why}; {plan.sequences} texts are scored, the longest of {plan.longest} tokens")
        )
        for line in _table(plan):
            text.append("\n").append_text(words(line))
        self.say(text)


def headline(plan: Plan, spec: RunSpec) -> str:
    """`✓ fits: float32, gradients of all weights, about 1.2 GB of 12.0 GB free on cpu, batch 1`."""
    row = _row_of(plan, spec)
    if row is None:  # what auto means there, the sentence of the plan says
        return f"{_FITS[plan.command is not None]}: {plan.why}"
    free = f" of {fmt.size(plan.free_bytes)} free" if plan.free_bytes is not None else ""
    more = f", {fmt.size(plan.reclaimable_bytes)} more if warm models go" if plan.reclaimable_bytes else ""
    needs = f"{row.dtype}, gradients {_GRADIENTS[row.gradients]}, about {fmt.size(row.total_bytes)}"
    return f"{_FITS[row.fits]}: {needs}{free} on {plan.device}{more}, batch {spec.batch_size or row.batch_size}"


def _row_of(plan: Plan, spec: RunSpec) -> PlanRow | None:
    """The way of scoring that the run takes: the first one that fits of those that it leaves open, else the smallest.

    None where its dtype is not known: on an accelerator `auto` is what is stored.
    """
    if spec.dtype == "auto" and plan.device != "cpu":
        return None
    dtype = {"auto": "float32", "float16": "bfloat16"}.get(spec.dtype, spec.dtype)  # both halves need the same
    open_ways = ("offload",) if spec.offload == "cpu" else ("resident", "sweep")
    ways = open_ways if spec.gradients == "auto" or spec.offload == "cpu" else (spec.gradients,)
    rows = [row for row in plan.rows if row.dtype == dtype and row.gradients in ways]
    return next((row for row in rows if row.fits), min(rows, key=lambda row: row.total_bytes, default=None))


def _table(plan: Plan) -> list[str]:
    """The memory of every way of scoring, in lines of equal columns."""
    rows = [("dtype", "gradients at once", "peak", "batch", "")]
    for row in plan.rows:
        dtype = "bfloat16, float16" if row.dtype == "bfloat16" else row.dtype
        gradients = "of one block, offloaded" if row.gradients == "offload" else _GRADIENTS[row.gradients]
        rows.append((dtype, gradients, fmt.size(row.total_bytes), str(row.batch_size), _FITS[row.fits]))
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    return [
        f"{dtype:<{first}}  {gradients:<{second}}  {peak:>{third}}  {batch:>5}  {fits}".rstrip()
        for dtype, gradients, peak, batch, fits in rows
    ]
