"""What a run needs, as the daemon planned it: whether it fits, how gradients are computed, and how much memory that takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from rich.text import Text
from textual import work
from textual.timer import Timer

from cwa_engine.base.devices import is_cpu
from cwa_engine.options import PLAN, option_fields
from cwa_engine.rows import Plan, PlanRow
from cwa_engine.spec import RunSpec
from cwa_tui.form.draft import Problem
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

_GRADIENTS = {
    "resident": "of all weights",
    "sweep": "of one block",
    "offload": "of one block, the others in CPU memory",
}
_FITS = {True: "✓ fits", False: "✗ too large", None: "not known here"}


Say = Callable[[str], None]
MakePlan = Callable[[RunSpec, Say], Awaitable[Plan]]


class FormPlan(QuietStatic):
    """One line at the top says it; a wide terminal shows the memory of each dtype below.

    `make_plan` calls its second argument with what it waits for; it is cancelled when its plan is not needed any more.
    After `pause_s` seconds without a change it is called by itself; None: never.
    """

    def __init__(self, make_plan: MakePlan, pause_s: float | None, id: str) -> None:
        super().__init__(id=id)
        self._make_plan, self._pause_s = make_plan, pause_s
        self._asked = ""  # what the plan that is shown or being made depends on
        self._planned: tuple[RunSpec, Plan] | None = None
        self._pause: Timer | None = None

    def on_mount(self) -> None:
        self._tell("^r asks what this run needs")

    def consider(self, spec: RunSpec | None, is_here: bool) -> None:
        """Take what is typed: drop a plan of something else, and plan it after a pause if its model is here."""
        key = _key(spec)
        if self._planned:
            self._show(self._planned[1], spec or self._planned[0], outdated=_key(self._planned[0]) != key)
        if self._pause:
            self._pause.stop()
        if key == self._asked:
            return
        self.workers.cancel_group(self, "plan")
        self._asked = _key(self._planned[0]) if self._planned else ""
        if spec and is_here and key != self._asked and self._pause_s is not None:
            self._pause = self.set_timer(self._pause_s, partial(self.make, spec))

    @work(exclusive=True, group="plan", exit_on_error=False)
    async def make(self, spec: RunSpec) -> None:
        """Have the run planned, and show what comes of it."""
        self._asked, self._planned = _key(spec), None
        try:
            plan = await self._make_plan(spec, self._tell)
        except Exception as error:
            self._refuse(Problem.of(error))
        else:
            self._planned = spec, plan
            self._show(plan, spec, outdated=False)

    def _tell(self, text: str) -> None:
        """What happens to the plan, where there is none yet."""
        self.say(Text.assemble(("plan  ", "bold"), words(text)))

    def _refuse(self, problem: Problem) -> None:
        said = Text.assemble(("plan  ✗ ", "bold"), words(problem.message))
        self.say(said.append(f"\n{words(problem.hint)}" if problem.hint else ""))

    def _show(self, plan: Plan, spec: RunSpec, outdated: bool) -> None:
        """Show the plan of a run with this spec; an outdated one says so."""
        before = "of what was typed before: " if outdated else ""
        text = Text.assemble(("plan  ", "bold"), before, words(headline(plan, spec)))
        scored = f"{plan.sequences} texts are scored, the longest of {plan.longest} tokens"
        text.append("\n").append_text(words(f"{plan.why}; {scored}"))
        for line in _table(plan):
            text.append("\n").append_text(words(line))
        self.say(text)


def _key(spec: RunSpec | None) -> str:
    """What a plan depends on."""
    asked = {name for name, entry in option_fields(RunSpec).items() if PLAN in entry.option.commands}
    return spec.model_dump_json(include=asked) if spec else ""


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
    if spec.dtype == "auto" and not is_cpu(plan.device):
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
