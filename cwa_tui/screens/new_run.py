"""The form for a new run. It says what is wrong with the run, and keeps what was typed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from cwa_engine.base.errors import CwaError
from cwa_engine.command_line import command_of
from cwa_engine.methods.metrics import METRICS
from cwa_engine.options import Kind, OptionField
from cwa_engine.spec import RunSpec
from cwa_tui.draft import Draft, about_model, form_fields, model_names
from cwa_tui.widgets.tick import Tick

Submit = Callable[[RunSpec, str], Awaitable[str]]


class NewRunScreen(ModalScreen[str | None]):
    """Returns the new run's id, or None. `keep` is called with the draft whenever the form closes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "close"),
        # with priority, or keys typed ahead over a slow line would go to the field before
        Binding("tab", "app.focus_next", show=False, priority=True),
        Binding("shift+tab", "app.focus_previous", show=False, priority=True),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]
    AUTO_FOCUS = "#model"

    def __init__(self, submit: Submit, keep: Callable[[Draft], None], draft: Draft, warm: Sequence[str]) -> None:
        super().__init__()
        self._submit, self._keep, self._first, self._warm = submit, keep, draft, list(warm)

    def compose(self) -> ComposeResult:
        fields = form_fields()
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = "new run"
            dialog.border_subtitle = "tab next field · enter starts · escape closes"
            for entry in fields:
                if _shape(entry) is Input:
                    yield _line(entry.option.label, self._input(entry))
                    if entry.field == "model":
                        yield Static(id="about-model", markup=False)
            for entry in fields:
                if _shape(entry) is VerticalScroll:
                    with Horizontal(classes="line"):
                        yield Label(entry.option.label)
                        with VerticalScroll(id=_id(entry), can_focus=False):
                            for name in entry.choices:
                                chosen = name in self._first.values.get(entry.field, ())
                                yield Tick(f"{name}  {METRICS[name].formula}", chosen, id=f"{_id(entry)}-{name}")
            with Horizontal(classes="line"):
                yield Label("")
                for entry in fields:
                    if _shape(entry) is Tick:
                        label = f"no {entry.option.label}" if entry.option.no else entry.option.label
                        yield Tick(label, bool(self._first.values.get(entry.field)), id=_id(entry))
            yield Static(id="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("start", id="start", compact=True)
                yield Button("close", id="close", compact=True)

    def _input(self, entry: OptionField) -> Input:
        names = model_names(self._warm) if entry.field == "model" else entry.choices
        suggester = SuggestFromList(names, case_sensitive=False) if names else None
        value = self._first.values.get(entry.field, "")
        return Input(value, entry.option.example, id=_id(entry), suggester=suggester, compact=True)

    def on_mount(self) -> None:
        self._describe_model()
        self.query_one("#problem").display = False

    @property
    def draft(self) -> Draft:
        """What is in the form now."""
        return Draft({entry.field: self._value(entry) for entry in form_fields()})

    def _value(self, entry: OptionField) -> Any:
        shape = _shape(entry)
        if shape is VerticalScroll:
            ticks = {name: self.query_one(f"#{_id(entry)}-{name}", Tick) for name in entry.choices}
            return tuple(name for name, tick in ticks.items() if tick.value)
        if shape is Tick:
            return self.query_one(f"#{_id(entry)}", Tick).value
        return self.query_one(f"#{_id(entry)}", Input).value

    @on(Input.Changed, "#model")
    def _describe_model(self) -> None:
        typed = self.query_one("#model", Input).value
        self.query_one("#about-model", Static).update(about_model(typed, self._warm))

    @on(Input.Changed)
    @on(Tick.Changed)
    def _forget_problem(self) -> None:
        self.query_one("#problem").display = False

    @on(Input.Submitted)
    @on(Button.Pressed, "#start")
    @work(exclusive=True, exit_on_error=False)
    async def _start(self) -> None:
        self._keep(self.draft)
        try:
            spec = self.draft.spec()
            run_id = await self._submit(spec, command_of(spec))
        except CwaError as error:
            self._explain(error)
        else:
            self.dismiss(run_id)

    def _explain(self, error: CwaError) -> None:
        problem = self.query_one("#problem", Static)
        problem.update(f"Error: {error.message}" + (f"\nHint:  {error.hint}" if error.hint else ""))
        problem.display = True

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self._keep(self.draft)
        self.dismiss(None)


def _shape(entry: OptionField) -> type[Widget]:
    """The widget of an option: a tick for a flag, a list of ticks for several of a few choices, else a line to type in."""
    if entry.kind is Kind.FLAG or entry.option.no:
        return Tick
    return VerticalScroll if entry.several and entry.choices else Input


def _id(entry: OptionField) -> str:
    return entry.field.replace("_", "-")


def _line(label: str, field: Widget) -> Horizontal:
    return Horizontal(Label(label), field, classes="line")
