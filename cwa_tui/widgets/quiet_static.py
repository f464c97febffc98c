"""A text that is set often and drawn only when it changed."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from cwa_tui.text.visible import visible_text


class QuietStatic(Static):
    """`say` sets the text; the screen is laid out again only if the text takes more or fewer lines than before.

    A new layout draws the whole screen, which is 4 kB at 80x24; a clock that ticks is 100 bytes.
    """

    _said: Text | None = None
    _lines: int | None = None

    def say(self, text: Text) -> None:
        text = visible_text(text)
        if self._said is not None and text == self._said and text.spans == self._said.spans:
            return
        self._said = text
        self.update(text, layout=False)
        width = self.content_size.width
        lines = (
            self.visual.get_height(self.styles.get_rules(), width) if width else None
        )  # None before the first layout
        if lines is None or lines != self._lines:
            self.refresh(layout=True)
        self._lines = lines
