"""A choice that can be read without colour: `[x] grad_x_weight` or `[ ] grad_x_weight`."""

from __future__ import annotations

from textual.widgets import Checkbox


class Tick(Checkbox):
    """Space and enter change it."""

    BUTTON_LEFT = ""
    BUTTON_RIGHT = ""

    def __init__(self, label: str, value: bool, id: str) -> None:
        super().__init__(label, value, id=id, compact=True)
        self._mark()

    def watch_value(self) -> None:
        super().watch_value()
        self._mark()

    def _mark(self) -> None:
        self.BUTTON_INNER = "[x]" if self.value else "[ ]"
