"""Fields under one title, which folds them: `[+] Texts   2 changed`. They are made when they are first unfolded."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from cwa_tui.form.draft import Draft, Section
from cwa_tui.widgets.form_field import FormField
from cwa_tui.widgets.quiet_static import QuietStatic


class SectionTitle(QuietStatic, can_focus=True):
    """Enter, space or a click folds and unfolds; right unfolds, left folds."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "fold(None)", show=False),
        Binding("right,l", "fold(False)", show=False),
        Binding("left,h", "fold(True)", show=False),
    ]

    async def action_fold(self, folded: bool | None) -> None:
        section = self.parent
        assert isinstance(section, FormSection)
        await section.fold(not section.folded if folded is None else folded)

    async def on_click(self) -> None:
        await self.action_fold(None)


class FormSection(Vertical):
    """A group of options. The basic one has no title and is never folded."""

    def __init__(self, section: Section, draft: Draft, folded: bool) -> None:
        super().__init__(classes="form-section")
        self.section, self.folded = section, folded
        self._draft, self._has_title = draft, folded
        self._problems = 0

    def compose(self) -> ComposeResult:
        if self._has_title:
            yield SectionTitle()
        else:
            yield from self._fields()

    def on_mount(self) -> None:
        self._draw_title()

    @property
    def fields(self) -> list[FormField]:
        """The fields that were made."""
        return list(self.query(FormField))

    async def fold(self, folded: bool) -> None:
        """Fold the fields away, or show them."""
        if folded == self.folded or not self._has_title:
            return
        self.folded = folded
        if not folded and not self.fields:
            await self.mount_all(self._fields())
        for field in self.fields:
            field.display = not folded
        self._draw_title()

    def note(self, draft: Draft, problems: int) -> None:
        """Take the draft, of which the title counts changes, and the number of problems in the section."""
        self._draft, self._problems = draft, problems
        self._draw_title()

    def _fields(self) -> list[FormField]:
        return [FormField(entry, self._draft.value(entry)) for entry in self.section.entries]

    def _draw_title(self) -> None:
        if not self._has_title:
            return
        text = Text.assemble("[+] " if self.folded else "[-] ", (self.section.title, "bold"))
        if changed := self._draft.changed(self.section):
            text.append(f"   {changed} changed")
        if self._problems:
            text.append(f"   ✗ {self._problems} wrong", style="bold")
        self.query_one(SectionTitle).say(text)
