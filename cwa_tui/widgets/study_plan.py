"""What a study will take: cells, passes, time and memory, and where each figure comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rich.text import Text
from textual import work
from textual.timer import Timer

from cwa_engine.studies.plan import StudyPlan
from cwa_engine.studies.study import Study
from cwa_tui.form.draft import Problem
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

PlanStudy = Callable[[Study], StudyPlan]  # for a thread: it reads texts and past runs


class StudyPlanText(QuietStatic):
    """Plans what is typed after `pause_s` seconds without a change; None: only when it is asked for."""

    def __init__(self, plan: PlanStudy, pause_s: float | None, id: str) -> None:
        super().__init__(id=id)
        self._plan, self._pause_s = plan, pause_s
        self._study: Study | None = None
        self._pause: Timer | None = None

    def on_mount(self) -> None:
        self._tell("^r says what this study takes")

    def consider(self, study: Study | None) -> None:
        """Take what is typed; the plan of something else is dropped."""
        if study == self._study:
            return
        self._study = study
        self.workers.cancel_group(self, "plan")
        self._tell("^r says what this study takes")
        if self._pause:
            self._pause.stop()
        if study and self._pause_s is not None:
            self._pause = self.set_timer(self._pause_s, self.make)

    @work(exclusive=True, group="plan", exit_on_error=False)
    async def make(self) -> None:
        """Plan now."""
        if (study := self._study) is None:
            return
        self._tell("reading texts and past runs ...")
        try:
            plan = await asyncio.to_thread(self._plan, study)
        except Exception as error:
            problem = Problem.of(error)
            self._tell(f"✗ {problem.message}" + (f"\n{problem.hint}" if problem.hint else ""))
        else:
            self._tell(plan_in_words(plan))

    def _tell(self, text: str) -> None:
        self.say(Text.assemble(("plan  ", "bold"), words(text)))


def plan_in_words(plan: StudyPlan) -> str:
    """`6 cells, 2 of them done already · 1,200 passes · about 3 min 05 s · at most 1.2 GB`, then where that comes from."""
    done = sum(entry.done for entry in plan.cells)
    cells = f"{len(plan.cells)} {'cell' if len(plan.cells) == 1 else 'cells'}"
    memory = [entry.memory_bytes for entry in plan.cells]
    known = [size for size in memory if size is not None]
    parts = [
        f"{cells}, {done} of them done already" if done else cells,
        "passes not counted" if plan.passes is None else f"{plan.passes:,} passes",
        "time not known" if plan.seconds is None else f"about {fmt.duration(plan.seconds)}",
        "memory not known" if not known else f"at most {fmt.size(max(known))}",
    ]
    if known and len(known) < len(memory):
        parts[-1] += f" ({len(memory) - len(known)} not known)"
    return " · ".join(parts) + f"\ntime: {plan.seconds_from}\nmemory: {plan.memory_from}"
