"""The form for a new study: its question, its models and what all its runs share, with its plan and its command line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical

from cwa_engine.base.errors import InvalidInput
from cwa_engine.studies.study import Study
from cwa_tui.form.draft import Draft, Problem
from cwa_tui.form.model_choice import Standing
from cwa_tui.form.study_draft import CheckedStudy, StudyDraft, study_fields, study_sections
from cwa_tui.screens.form_doors import FormDoors
from cwa_tui.screens.form_screen import FormScreen, FormScroll
from cwa_tui.screens.pick_model import PickModelScreen
from cwa_tui.widgets.form_command import FormCommand
from cwa_tui.widgets.form_field import FormField
from cwa_tui.widgets.form_section import FormSection
from cwa_tui.widgets.study_plan import PlanStudy, StudyPlanText


@dataclass(frozen=True)
class StudyDoors:
    """What the form asks of the rest. `start` gives the id of the study."""

    start: Callable[[Study], Awaitable[str]]
    plan: PlanStudy
    form: FormDoors  # which models there are, and what copies


class NewStudyScreen(FormScreen):
    """Returns the new study's id, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+j", "start", "Start the study", priority=True),
        Binding("ctrl+r", "plan", "Plan the study", priority=True),
        Binding("ctrl+y", "copy", "Copy the command line", priority=True),
    ]
    AUTO_FOCUS = "#edit-question"

    def __init__(self, doors: StudyDoors) -> None:
        super().__init__(doors.form)
        self._study_doors = doors
        self._draft = StudyDraft(question=str(study_fields()["question"].default))
        self._checked: CheckedStudy = self._draft.checked()

    def compose(self) -> ComposeResult:
        doors = self._study_doors
        with Vertical(id="form") as form:
            form.border_title = "new study"
            with Container(id="form-body"):
                with FormScroll(id="form-fields"):
                    for name, entry in study_fields().items():
                        yield FormField(entry, self._draft.question if name == "question" else "")
                    for number, section in enumerate(study_sections()):
                        yield FormSection(section, self._draft.run, folded=number > 0)
                with FormScroll(id="form-side"):
                    yield StudyPlanText(doors.plan, doors.form.plan_after_s, id="form-plan")
                    yield FormCommand("study", id="form-command")
            yield from self.compose_foot(start="^j", plan="^r", copy="^y", close="esc")

    @property
    def draft(self) -> Draft:
        """The options of a run that are in the form now."""
        return self._draft.run

    # what is typed

    @on(FormField.Changed)
    def _changed(self, message: FormField.Changed) -> None:
        entry, value = message.by.entry, message.by.value
        if entry.field in study_fields():
            self._draft = self._draft.with_text(entry.field, str(value))
        else:
            self._draft = replace(self._draft, run=self._draft.run.with_value(entry, value))
        self.query_one("#form-problem").display = False
        self._look()

    def _look(self) -> None:
        self._checked = self._draft.checked()
        problems = dict(self._checked.problems)
        if wrong := self._wrong_model():
            problems["models"] = wrong
        if not self._draft.models.strip() and not self._asked_to_start:
            problems.pop("models", None)
        whole = problems.pop("", None)
        for section in self.query(FormSection):
            section.note(self._draft.run, sum(entry.field in problems for entry in section.section.entries))
        said = {"models": self._about_models, "question": self._about_question}
        for row in self.query(FormField):
            about = said.get(row.entry.field, "")
            row.tell(whole if row.entry.field == "question" and whole else problems.get(row.entry.field), about)
            if row.here:
                self._suggest(row)
        self.query_one(FormCommand).show(self._command)
        self.query_one(StudyPlanText).consider(self._checked.study)

    @property
    def _names(self) -> list[str]:
        try:
            return self._draft.model_names
        except InvalidInput:
            return []

    @property
    def _about_models(self) -> str:
        return f"{len(self._names)} models" if len(self._names) > 1 else ""

    @property
    def _about_question(self) -> str:
        needs = self._draft.needs
        return f"its runs have {needs}, where nothing else is chosen below" if needs else ""

    def _wrong_model(self) -> Problem | None:
        """The first name that is none, as far as that is known here."""
        for name in self._names if self._looked_on_disk.is_set() else ():
            verdict = self._models.verdict(name, None)
            if verdict.standing is Standing.WRONG:
                said = verdict.said if name in verdict.said else f"{name}: {verdict.said}"
                return Problem(said, verdict.hint)
        return None

    def _suggest(self, row: FormField) -> None:
        if row.entry.field not in study_fields():
            super()._suggest(row)

    @property
    def _typed_command(self) -> str:
        return self._checked.command

    @on(FormField.Entered)
    def _entered(self, message: FormField.Entered) -> None:
        if message.by.entry.field == "models":
            self._pick_models()
        else:
            self.action_field(1)

    def _pick_models(self) -> None:
        """Add one model after the other, until the list is closed."""

        def take(name: str | None) -> None:
            if name is None or (row := self._row("models")) is None:
                return
            row.value = self._draft.with_model(name).models
            self._changed(FormField.Changed(row))
            self._pick_models()

        self.app.push_screen(PickModelScreen(self._models, self._room, ""), take)

    # what the keys do

    def action_plan(self) -> None:
        """Plan it now."""
        if self._checked.study is None:
            self._show_mistakes()
        else:
            self.query_one(StudyPlanText).make()

    async def _start(self) -> None:
        self._asked_to_start = True
        await self._looked_on_disk.wait()
        self._look()
        study = self._checked.study
        if study is None or self._wrong_model():
            self._show_mistakes()
            return
        try:
            study_id = await self._study_doors.start(study)
        except Exception as error:
            self._tell_problem(Problem.of(error))
        else:
            self.dismiss(study_id)

    def _show_mistakes(self) -> None:
        """Say what is wrong first, and go to its field."""
        self._asked_to_start = True
        self._look()
        found = {**self._checked.problems, **({"models": wrong} if (wrong := self._wrong_model()) else {})}
        for name, problem in found.items():
            self._tell_problem(problem)
            self._go_to(name or "question")
            return

    def action_close(self) -> None:
        self.dismiss(None)
