"""What forms share: fields to move through, help on each, the models that are known, and a line that says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from cwa_tui.form.draft import Draft, Problem
from cwa_tui.form.model_choice import KnownModels, Room, model_choices
from cwa_tui.form.suggesting import for_text
from cwa_tui.screens.form_doors import FormDoors
from cwa_tui.widgets.form_choice import ChoiceField
from cwa_tui.widgets.form_field import FormField, field_id
from cwa_tui.widgets.form_section import FormSection, SectionTitle
from cwa_tui.widgets.form_suggestions import Suggestions
from cwa_tui.widgets.quiet_static import QuietStatic

if TYPE_CHECKING:
    from cwa_tui.screens.navigation import Navigation


class FormScroll(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Follows the focus. Without keys of its own, up and down are left to the form."""


class FormScreen(ModalScreen[str | None]):
    """Has `FormField`s, and below them what `compose_foot` gives."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # with priority, or keys typed ahead over a slow line would go to the field before
        Binding("tab", "field(1)", "Next field", show=False, priority=True),
        Binding("shift+tab", "field(-1)", "Field before", show=False, priority=True),
        Binding("up", "line(-1)", "Up", show=False, priority=True),
        Binding("down", "line(1)", "Down", show=False, priority=True),
        Binding("f1", "help", "Help"),
        Binding("escape", "close", "Close"),
        Binding("enter", "field(1)", "Next field", show=False),
        Binding("pageup", "page(-1)", "Group of options before", show=False),
        Binding("pagedown", "page(1)", "Next group of options", show=False),
    ]

    def __init__(self, doors: FormDoors) -> None:
        super().__init__()
        self._doors = doors
        self._looked_on_disk = asyncio.Event()
        self._here: FormField | None = None  # the field with the focus
        self._asked_to_start = False  # from then on it is a mistake that no model is named
        self._starting = False
        self._models = KnownModels(model_choices(doors.warm(), {}), doors.access, doors.host)

    @property
    def draft(self) -> Draft:
        """The options of a run that are in the form now."""
        raise NotImplementedError

    def _look(self) -> None:
        """Check what is typed, and show what follows from it."""
        raise NotImplementedError

    @property
    def _typed_command(self) -> str:
        """The command line of what is in the form, on this machine; empty while there is a mistake."""
        raise NotImplementedError

    async def _start(self) -> None:
        """Start what is in the form if nothing is wrong with it, and close the form."""
        raise NotImplementedError

    def _show_mistakes(self) -> None:
        """Say what is wrong first, and go to its field."""
        raise NotImplementedError

    def compose_foot(self, **buttons: str) -> ComposeResult:
        """The help on a field, what is wrong, and buttons: each does the action of its name, by the key beside it."""
        yield Static(id="form-help")
        yield QuietStatic(id="form-problem")
        with Horizontal(classes="buttons"):
            for name, key in buttons.items():
                yield Button(f"{name} {key}", id=name, compact=True)

    def on_mount(self) -> None:
        self._look()
        self._find_models()

    def _suggest(self, row: FormField) -> None:
        """Show what may be picked for what is typed into a field."""
        entry = row.entry
        if isinstance(row.control, Input):
            devices = [*entry.choices, *(device.device for device in self._doors.devices()), *self._doors.lanes()]
            known = {"after": self._doors.runs(), "device": list(dict.fromkeys(devices))}
            row.suggest(for_text(entry, str(row.value), known.get(entry.field, entry.choices)))

    # what the keys do

    @work(group="start", exit_on_error=False)
    async def action_start(self) -> None:
        if not self._starting:  # a second press would start it twice
            self._starting = True
            try:
                await self._start()
            finally:
                self._starting = False

    @property
    def _command(self) -> str:
        """The command line to copy."""
        command = self._typed_command
        return command.replace("cwtool", f"cwtool --host {self._doors.host}", 1) if self._doors.host else command

    def action_copy(self) -> None:
        """Copy the command line."""
        if self._command:
            self._doors.copy(self._command)
        else:
            self._show_mistakes()

    # what is known of models

    @work(exclusive=True, group="models", exit_on_error=False)
    async def _find_models(self) -> None:
        """Look through the caches, which may take a while on a disk of a network."""
        on_disk: Mapping[str, int] = {}
        try:
            if not self._doors.host:
                on_disk = await asyncio.to_thread(self._doors.on_disk, self._doors.access)
        except OSError as error:
            self._say(f"✗ the models on disk cannot be listed: {error}")
        self._models = KnownModels(model_choices(self._doors.warm(), on_disk), self._doors.access, self._doors.host)
        self._looked_on_disk.set()
        self._look()

    @property
    def _room(self) -> Room:
        device = str(self.draft.values.get("device", "auto")).strip() or "auto"
        return Room.on(device, str(self.draft.values.get("dtype", "auto")), self._doors.devices(), self._doors.warm())

    # moving about

    def action_field(self, steps: int) -> None:
        """To the next field, past the names that may be picked."""
        for _ in range(50):
            focused = self.focus_next() if steps > 0 else self.focus_previous()
            if not isinstance(focused, Suggestions):
                return

    def action_line(self, steps: int) -> None:
        """To what is below or above: another line of a list, a name that may be picked, another field."""
        if isinstance(self.focused, (ChoiceField, Suggestions)) and self.focused.move_line(steps):
            return
        names = self._here.names_to_pick if self._here and not isinstance(self.focused, Suggestions) else None
        if steps > 0 and names:
            self.call_after_refresh(names.focus)  # they may not be laid out yet, and would not be the next then
        elif steps > 0:
            self.focus_next()
        else:
            self.focus_previous()

    def action_page(self, steps: int) -> None:
        """To the next title, or to the first field."""
        chain = self.focus_chain
        stops = [0, *(place for place, each in enumerate(chain) if isinstance(each, (SectionTitle, Button)))]
        at = chain.index(self.focused) if self.focused in chain else 0
        beyond = [place for place in stops if (place > at if steps > 0 else place < at)]
        if beyond:
            chain[min(beyond) if steps > 0 else max(beyond)].focus()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        here = self._row_of(event.widget)
        if here is not self._here:
            if self._here:
                self._here.here = False
            if here:
                here.here = True
                self._suggest(here)
            self._here = here
        self.call_after_refresh((here or event.widget).scroll_visible, animate=False)  # notes move what is below
        self._show_help()

    @on(ChoiceField.Moved)
    def _show_help(self) -> None:
        said = ""
        if self.focused is not None:
            if row := self._row_of(self.focused):
                said = row.help
            elif isinstance(self.focused, SectionTitle):
                said = "enter folds and unfolds these options"
        self.query_one("#form-help", Static).update(Text(said), layout=False)

    def _row_of(self, widget: Widget) -> FormField | None:
        return next((each for each in widget.ancestors_with_self if isinstance(each, FormField)), None)

    def _row(self, name: str) -> FormField | None:
        found = self.query(f"#{field_id(name)}")
        return found.first(FormField) if found else None

    # what is said, and where

    @on(Button.Pressed)
    def _pressed(self, message: Button.Pressed) -> None:
        getattr(self, f"action_{message.button.id}")()

    def _say(self, text: str) -> None:
        said = self.query_one("#form-problem", QuietStatic)
        said.say(Text(text))
        said.display = True

    def _tell_problem(self, problem: Problem) -> None:
        self._say(f"✗ {problem.message}" + (f" - {problem.hint}" if problem.hint else ""))

    @work(exclusive=True, group="go", exit_on_error=False)
    async def _go_to(self, name: str) -> None:
        """Unfold the section of a field, and focus it."""
        for section in self.query(FormSection):
            if any(entry.field == name for entry in section.section.entries):
                await section.fold(False)
        self._look()
        if row := self._row(name):
            row.control.focus()

    def action_help(self) -> None:
        cast("Navigation", self.app).open_help()
