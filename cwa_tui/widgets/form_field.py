"""One option of a run in the form: its label, a widget by its kind, and below what is wrong with it and what may be picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from cwa_engine.options import Kind, OptionField
from cwa_tui.form.draft import Problem, Value, default_in_words
from cwa_tui.form.suggesting import Suggestion
from cwa_tui.text.visible import words
from cwa_tui.widgets.form_choice import ChoiceField
from cwa_tui.widgets.form_suggestions import Suggestions
from cwa_tui.widgets.quiet_static import QuietStatic

_TICK = "on"  # the one name of a flag


class FormField(Vertical):
    """Posts Changed as one types, and Entered on enter in a line of text.

    It draws its label itself, and what stands below is made when there is something to say: a form of all options is laid
    out in a third of the time.
    """

    @dataclass
    class Changed(Message):
        by: FormField

    @dataclass
    class Entered(Message):
        by: FormField

    def __init__(self, entry: OptionField, value: Value) -> None:
        super().__init__(id=field_id(entry.field), classes="form-field")
        self.entry = entry
        self._value = value
        self.control = self._made()  # the widget that takes the focus
        self._note: QuietStatic | None = None
        self._suggestions: Suggestions | None = None
        self._here = False

    def compose(self) -> ComposeResult:
        yield self.control

    def render(self) -> Text:
        return Text(self.entry.label, "bold" if self._here else "dim")

    @property
    def here(self) -> bool:
        """Whether the focus is in this field: its label is bold then, and names to pick are seen."""
        return self._here

    @here.setter
    def here(self, here: bool) -> None:
        self._here = here
        if self._suggestions and not here:
            self._suggestions.show(())
        self.refresh()

    def _made(self) -> Widget:
        entry, value, name = self.entry, self._value, control_id(self.entry.field)
        if isinstance(value, bool):
            return ChoiceField((_TICK,), _chosen(value), several=True, id=name)
        if entry.closed:
            return ChoiceField(entry.choices, _chosen(value), entry.several, entry.option.meanings, id=name)
        line = Input(str(value), default_in_words(entry), id=name, compact=True)
        line.cursor_blink = False  # each blink would be sent over a slow line
        return line

    @property
    def value(self) -> Value:
        return self._value

    @value.setter
    def value(self, value: Value) -> None:
        self._value = value
        control = self.control
        if isinstance(control, Input):
            control.value = str(value)
            control.cursor_position = len(control.value)
        elif isinstance(control, ChoiceField):
            control.chosen = _chosen(value)

    @property
    def help(self) -> str:
        """What the option is, and what the choice under the cursor means."""
        control = self.control
        option = self.entry.option
        about = f"{self.entry.flag}  {option.help}" if option.commands else option.help  # or no command has the flag
        meaning = control.meaning if isinstance(control, ChoiceField) else ""
        return f"{meaning}\n{about}" if meaning else about

    def tell(self, problem: Problem | None, about: str = "") -> None:
        """Show what is wrong with the field, or else what is known of what it holds."""
        text = Text()
        if problem:
            text = Text.assemble(("✗ ", "bold"), words(problem.message))
            text.append(f" - {words(problem.hint)}" if problem.hint else "")
        elif about:
            text = words(about)
        if self._note is None:
            if not text:
                return
            self._note = QuietStatic(classes="form-note")
            self.mount(self._note, after=self.control)
        self._note.set_class(problem is not None, "-wrong")
        self._note.display = bool(text)
        self._note.say(text)

    def suggest(self, names: Sequence[Suggestion]) -> None:
        """Show names to pick while the field has the focus."""
        if self._suggestions is None:
            if not names:
                return
            self._suggestions = Suggestions()
            self.mount(self._suggestions)
        self._suggestions.show(names if self._here else ())

    @property
    def names_to_pick(self) -> Suggestions | None:
        """The names below the field, if there are any."""
        return self._suggestions if self._suggestions and self._suggestions.names else None

    @on(Input.Changed)
    def _typed(self, message: Input.Changed) -> None:
        message.stop()
        if message.value != self._value:
            self._value = message.value
            self.post_message(self.Changed(self))

    @on(Input.Submitted)
    def _entered(self, message: Input.Submitted) -> None:
        message.stop()
        self.post_message(self.Entered(self))

    @on(ChoiceField.Changed)
    def _chosen(self, message: ChoiceField.Changed) -> None:
        message.stop()
        chosen = message.by.chosen
        if self.entry.kind is Kind.FLAG:
            self._value = bool(chosen)
        else:
            self._value = chosen if self.entry.several else chosen[0]
        self.post_message(self.Changed(self))

    @on(Suggestions.Picked)
    def _picked(self, message: Suggestions.Picked) -> None:
        message.stop()
        self.screen.set_focus(self.control)
        self.value = message.text
        self.post_message(self.Changed(self))


def _chosen(value: Value) -> tuple[str, ...]:
    """The names that are chosen where a field has this value."""
    if isinstance(value, bool):
        return (_TICK,) if value else ()
    return value if isinstance(value, tuple) else (value,)


def field_id(field: str) -> str:
    """Id of a field's row in the form."""
    return f"field-{field.replace('_', '-')}"


def control_id(field: str) -> str:
    """Id of the widget in which a field is typed or chosen."""
    return f"edit-{field.replace('_', '-')}"
