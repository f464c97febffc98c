"""Names to pick for what is being typed, in lines below the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.widget import Widget

from cwa_tui.form.suggesting import Suggestion
from cwa_tui.text.visible import visible


class Suggestions(Widget, can_focus=True):
    """Down from the field comes here; enter or a click picks. It is seen while its field has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("k", "screen.line(-1)", show=False),
        Binding("j", "screen.line(1)", show=False),
        Binding("enter,right,l", "pick", show=False),
    ]

    @dataclass
    class Picked(Message):
        text: str

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[Suggestion, ...] = ()
        self._cursor = 0

    def show(self, names: Sequence[Suggestion]) -> None:
        """Show these names, or nothing."""
        if tuple(names) != self.names:
            self.names, self._cursor = tuple(names), 0
            self.set_class(bool(names), "-some")
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.names)

    def render(self) -> Text:
        width = max((len(visible(name.text)) for name in self.names), default=0)
        lines = []
        for place, name in enumerate(self.names):
            style = "bold reverse" if self.has_focus and place == self._cursor else ""
            line = Text(f"{visible(name.text):<{width}}", style=style)
            line.append(f"  {visible(name.about)}" if name.about else "", style="dim" if not style else "")
            line.stylize(Style(meta={"place": place}))
            lines.append(line)
        return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)

    def on_focus(self) -> None:
        self._cursor = 0
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        place = event.style.meta.get("place")
        if isinstance(place, int):
            self._cursor = place
            self.action_pick()

    def move_line(self, steps: int) -> bool:
        """To another name; False where there is none, and the screen moves to another field."""
        if not 0 <= self._cursor + steps < len(self.names):
            return False
        self._cursor += steps
        self.refresh()
        return True

    def action_pick(self) -> None:
        if self.names:
            self.post_message(self.Picked(self.names[self._cursor].text))
