"""Tags and note of a run, to be edited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static, TextArea

from cwa_daemon.protocol import JobView


@dataclass(frozen=True, slots=True)
class MarksChange:
    """What is to become of the tags and the note of a run."""

    add: tuple[str, ...]
    remove: tuple[str, ...]
    note: str


class MarksScreen(ModalScreen[MarksChange | None]):
    """Returns what was changed; None for escape. Enter in the line of tags keeps both."""

    DEFAULT_CSS = """
    MarksScreen TextArea { height: 6; border: none; padding: 0 1; background: $boost; }
    MarksScreen Input { height: 1; border: none; background: $boost; }
    MarksScreen .label { margin-top: 1; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "close"),
        Binding("ctrl+s", "keep", "keep", priority=True),
    ]
    AUTO_FOCUS = "#tags"

    def __init__(self, job: JobView) -> None:
        super().__init__()
        self._job = job

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "tags and note"
            dialog.border_subtitle = "ctrl+s keeps · escape closes"
            yield Static(f"{self._job.run_id}\n{self._job.model}", markup=False)
            yield Static("tags, with spaces between them", classes="label")
            yield Input(" ".join(self._job.tags), id="tags", select_on_focus=False)
            yield Static("note", classes="label")
            yield TextArea(self._job.note, id="note", tab_behavior="focus", compact=True)
            with Horizontal(classes="buttons"):
                yield Button("keep (ctrl+s)", id="keep", compact=True)
                yield Button("close", id="close", compact=True)

    def on_mount(self) -> None:
        note = self.query_one(TextArea)
        note.move_cursor(note.document.end)

    @on(Input.Submitted)
    def action_keep(self) -> None:
        written = self.query_one(Input).value.split()
        self.dismiss(
            MarksChange(
                tuple(tag for tag in written if tag not in self._job.tags),
                tuple(tag for tag in self._job.tags if tag not in written),
                self.query_one(TextArea).text.strip(),
            )
        )

    @on(Button.Pressed)
    def _press(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "keep":
            self.action_keep()
        else:
            self.dismiss(None)
