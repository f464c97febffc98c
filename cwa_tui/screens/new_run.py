"""The form for a new run. It says what is wrong as one types, what the run needs, and how the command line says the same."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical

from cwa_engine.hub.asking import ask_hub
from cwa_tui.form.draft import Checked, Draft, Problem, form_fields, sections
from cwa_tui.form.model_choice import Standing
from cwa_tui.form.suggesting import for_model
from cwa_tui.screens.form_doors import FormDoors
from cwa_tui.screens.form_screen import FormScreen, FormScroll
from cwa_tui.screens.pick_model import PickModelScreen
from cwa_tui.widgets.form_command import FormCommand
from cwa_tui.widgets.form_field import FormField
from cwa_tui.widgets.form_plan import FormPlan
from cwa_tui.widgets.form_section import FormSection


class NewRunScreen(FormScreen):
    """Returns the new run's id, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+j", "start", "Start the run", priority=True),
        Binding("ctrl+r", "plan", "Plan the run", priority=True),
        Binding("ctrl+y", "copy", "Copy the command line", priority=True),
        Binding("ctrl+l", "reset", "Empty the form, or bring back what was in it", priority=True),
    ]
    AUTO_FOCUS = "#edit-model"

    def __init__(self, doors: FormDoors, draft: Draft, title: str = "new run") -> None:
        super().__init__(doors)
        self._draft, self._title = draft, title
        self._checked: Checked = draft.checked()
        self._before_reset: Draft | None = None
        self._refused: tuple[Draft, str, Problem] | None = None  # what was refused, at which field, why

    def compose(self) -> ComposeResult:
        with Vertical(id="form") as form:
            form.border_title = self._title
            with Container(id="form-body"):
                with FormScroll(id="form-fields"):
                    for number, section in enumerate(sections()):
                        yield FormSection(section, self._draft, folded=number > 0)
                with FormScroll(id="form-side"):
                    yield FormPlan(self._doors.plan, self._doors.plan_after_s, id="form-plan")
                    yield FormCommand("run", id="form-command")
            yield from self.compose_foot(start="^j", plan="^r", copy="^y", reset="^l", close="esc")

    @property
    def draft(self) -> Draft:
        """What is in the form now."""
        return self._draft

    # what is typed

    @property
    def _revision(self) -> str | None:
        return str(self._draft.values.get("revision", "")).strip() or None

    @on(FormField.Changed)
    def _changed(self, message: FormField.Changed) -> None:
        self._draft = self._draft.with_value(message.by.entry, message.by.value)
        self._before_reset = self._refused = None
        self.query_one("#form-problem").display = False
        self._look()

    def _look(self) -> None:
        """Check what is typed, and show what follows from it."""
        self._checked = self._draft.checked()
        problems = dict(self._checked.problems)
        if self._refused and self._refused[0] == self._draft:
            problems.setdefault(self._refused[1], self._refused[2])
        typed = str(self._draft.values.get("model", ""))
        verdict = self._verdict = self._models.verdict(typed, self._revision)
        about = verdict.said
        if not typed.strip():
            about = ""
            if not self._asked_to_start:
                problems.pop("model", None)
        elif verdict.standing is not Standing.HERE and not self._looked_on_disk.is_set():
            about = "looking on disk ..."
        elif verdict.standing is Standing.WRONG:
            problems.setdefault("model", Problem(verdict.said, verdict.hint))
        elif choice := self._models.find(typed.strip().partition("@")[0]):
            about = "; ".join(part for part in (about, self._room.said(choice)) if part)
        for section in self.query(FormSection):
            section.note(self._draft, sum(entry.field in problems for entry in section.section.entries))
            for row in section.fields:
                row.tell(problems.get(row.entry.field), about if row.entry.field == "model" else "")
                if row.here:
                    self._suggest(row)
        self.query_one(FormCommand).show(self._command)
        self.query_one(FormPlan).consider(self._checked.spec, self._verdict.standing is Standing.HERE)

    def _suggest(self, row: FormField) -> None:
        """Show what may be picked for what is typed into a field."""
        entry, typed = row.entry, str(row.value)
        if entry.field == "model":
            row.suggest(for_model(typed, self._models, self._room))
        else:
            super()._suggest(row)

    @property
    def _typed_command(self) -> str:
        return self._checked.command

    @on(FormField.Entered)
    def _entered(self, message: FormField.Entered) -> None:
        if message.by.entry.field == "model":
            self._pick_model()
        else:
            self.action_field(1)

    def _pick_model(self) -> None:
        if (row := self._row("model")) is None:
            return

        def take(name: str | None) -> None:
            if name is not None:
                row.value = name
                self._changed(FormField.Changed(row))

        typed = str(row.value).strip()
        filtered = "" if self._models.find(typed) else typed
        self.app.push_screen(PickModelScreen(self._models, self._room, filtered), take)

    # plan

    @work(exclusive=True, group="ask for a plan", exit_on_error=False)
    async def action_plan(self) -> None:
        """Ask for the plan now."""
        draft, spec = self._draft, self._checked.spec
        if spec is None:
            self._show_mistakes()
        elif problem := await self._wrong_model():
            self._refuse(draft, "model", problem)
        else:
            self.query_one(FormPlan).make(spec)

    # start, and what else the keys do

    async def _start(self) -> None:
        self._asked_to_start = True
        self._look()
        self._doors.keep(self._draft)
        draft, checked, command = self._draft, self._checked, self._command
        if checked.spec is None:
            self._show_mistakes()
            return
        if problem := await self._wrong_model():
            self._refuse(draft, "model", problem)
            return
        if draft != self._draft:  # somebody typed while the Hub was asked
            return
        try:
            run_id = await self._doors.submit(checked.spec, command, checked.options)
        except Exception as error:
            self._refuse(draft, draft.field_named(error), Problem.of(error))
        else:
            self.dismiss(run_id)

    async def _wrong_model(self) -> Problem | None:
        """Why there is no such model, or None. The Hub is asked for one that is not here."""
        await self._looked_on_disk.wait()
        verdict = self._verdict
        if verdict.standing is Standing.WRONG:
            return Problem(verdict.said, verdict.hint)
        if verdict.standing not in (Standing.ASK, Standing.DOWNLOAD):
            return None
        self._say(f"asking {self._doors.access.endpoint} for {verdict.repo} ...")
        answer = await asyncio.to_thread(ask_hub, verdict.repo, verdict.revision, self._doors.access)
        self.query_one("#form-problem").display = False
        if answer.has_it is False:
            what = f"{verdict.repo} with the revision {verdict.revision}" if verdict.revision else verdict.repo
            return Problem(f"the Hub has no {what}, or it is private", "pick a name below, or set HF_TOKEN")
        if answer.has_it is None and verdict.standing is Standing.ASK:
            return Problem(f"{verdict.repo} is not on disk, and {answer.reason}", "pick a model that is on disk")
        return None

    def _refuse(self, draft: Draft, name: str, problem: Problem) -> None:
        """Show at its field, or below if it has none, why a run was not started."""
        if name:
            self._refused = draft, name, problem
            self._go_to(name)
        else:
            self._tell_problem(problem)

    def _show_mistakes(self) -> None:
        """Go to the first field that is wrong."""
        self._asked_to_start = True
        self._look()
        wrong = [name for name in form_fields() if name in self._checked.problems]
        if wrong:
            problem = self._checked.problems[wrong[0]]
            count = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            self._say(f"✗ {form_fields()[wrong[0]].label}: {problem.message}{count}")
            self._go_to(wrong[0])

    def action_reset(self) -> None:
        """Empty the form; once more brings back what was in it."""
        back, self._before_reset = self._before_reset, self._draft
        self._fill(back or Draft())
        self._before_reset = None if back else self._before_reset
        self._say("the form is as it was" if back else "the form is empty; ^l once more brings back what was in it")

    def _fill(self, draft: Draft) -> None:
        self._draft, self._asked_to_start = draft, False
        for row in self.query(FormField):
            row.value = draft.value(row.entry)
        self._look()

    def action_close(self) -> None:
        self._doors.keep(self._draft)
        self.dismiss(None)
