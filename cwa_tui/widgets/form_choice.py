"""Some names in a line or two, one or several of them chosen, that can be read without colour: `[x] zero  [ ] mean`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.widget import Widget

_GAP = 2  # cells between two names
_TALL = 40  # lines of a terminal in which every name has a line of its own
_SIGNS = {True: ("[x]", "[ ]"), False: ("●", "○")}  # of several, of one: chosen, not chosen


class ChoiceField(Widget, can_focus=True):
    """Left and right move. Where one is chosen the move chooses; of several, space ticks the one under the cursor.

    Enter never changes what is ticked. Up and down leave the field from its first and its last line.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", show=False),
        Binding("right,l", "move(1)", show=False),
        Binding("home", "move(-1000)", show=False),
        Binding("end", "move(1000)", show=False),
        Binding("k", "screen.line(-1)", show=False),
        Binding("j", "screen.line(1)", show=False),
        Binding("space", "tick", show=False),
    ]

    @dataclass
    class Changed(Message):
        """Something was chosen. `by` is the widget."""

        by: ChoiceField

    @dataclass
    class Moved(Message):
        """The cursor is on another name."""

        by: ChoiceField

    def __init__(
        self,
        names: Sequence[str],
        chosen: Sequence[str],
        several: bool,
        meanings: Mapping[str, str] | None = None,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._names, self._several, self._meanings = tuple(names), several, meanings or {}
        self.chosen = tuple(chosen)

    @property
    def chosen(self) -> tuple[str, ...]:
        """What is chosen, in the order of the names."""
        return tuple(name for name in self._names if name in self._chosen)

    @chosen.setter
    def chosen(self, names: Sequence[str]) -> None:
        self._chosen = set(names)
        self.cursor = next((place for place, name in enumerate(self._names) if name in self._chosen), 0)
        self.refresh()

    @property
    def under_cursor(self) -> str:
        return self._names[self.cursor]

    @property
    def meaning(self) -> str:
        """What the name under the cursor means: `zero: Set each weight to zero`."""
        about = self._meanings.get(self.under_cursor, "")
        return f"{self.under_cursor}: {about}" if about else ""

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def render(self) -> Text:
        lines = []
        for line in self._lines(self.content_size.width):
            cells = [self._cell(place) for place in line]
            lines.append(Text(" " * _GAP).join(cells))
            if self._one_a_line:
                lines[-1].append(
                    f"{'':{self._widest - len(lines[-1])}}  {self._meanings.get(self._names[line[0]], '')}", "dim"
                )
        return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)

    @property
    def _one_a_line(self) -> bool:
        """A tall terminal has room for what each of several means."""
        return self._several and bool(self._meanings) and self.app.size.height >= _TALL

    @property
    def _widest(self) -> int:
        return max(len(self._label(name)) for name in self._names)

    def _lines(self, width: int) -> list[list[int]]:
        """Places of the names by line: as many in a line as fit."""
        if self._one_a_line:
            return [[place] for place in range(len(self._names))]
        lines: list[list[int]] = [[]]
        used = 0
        for place, name in enumerate(self._names):
            length = len(self._label(name))
            if lines[-1] and used + _GAP + length > width:
                lines.append([])
            used = length if not lines[-1] else used + _GAP + length
            lines[-1].append(place)
        return lines

    def _label(self, name: str) -> str:
        return f"{_SIGNS[self._several][name not in self._chosen]} {name}"

    def _cell(self, place: int) -> Text:
        name = self._names[place]
        here = self.has_focus and place == self.cursor
        style = "bold reverse" if here else "bold" if name in self._chosen else ""
        return Text(self._label(name), style=Style.parse(style) + Style(meta={"place": place}))

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        place = event.style.meta.get("place")
        if isinstance(place, int):
            self._go_to(place)
            if self._several:
                self.action_tick()

    def action_move(self, steps: int) -> None:
        self._go_to(min(len(self._names) - 1, max(0, self.cursor + steps)))

    def move_line(self, steps: int) -> bool:
        """To the name above or below; False where there is none, and the screen moves to another field."""
        lines = self._lines(self.content_size.width)
        at = next(number for number, line in enumerate(lines) if self.cursor in line)
        if not self._several or not 0 <= at + steps < len(lines):
            return False
        column, target = lines[at].index(self.cursor), lines[at + steps]
        self.cursor = target[min(column, len(target) - 1)]
        self._moved()
        return True

    def action_tick(self) -> None:
        self._chosen = self._chosen ^ {self.under_cursor} if self._several else {self.under_cursor}
        self.refresh()
        self.post_message(self.Changed(self))

    def _go_to(self, place: int) -> None:
        if place != self.cursor:
            self.cursor = place
            self._moved()
        if not self._several and self.under_cursor not in self._chosen:
            self.action_tick()

    def _moved(self) -> None:
        self.refresh()
        self.post_message(self.Moved(self))
