"""A text that is set often and drawn only when it changed."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from cwa_tui.visible import visible_text


class QuietStatic(Static):
    """`say` sets the text; the screen is laid out again only if the height may differ."""

    _said: Text | None = None
    _lengths: tuple[int, ...] = ()

    def say(self, text: Text) -> None:
        text = visible_text(text)
        if text == self._said and text.spans == self._said.spans:
            return
        lengths = tuple(line.cell_len for line in text.split())
        fits = max((*lengths, *self._lengths), default=0) <= self.content_size.width
        self.update(text, layout=len(lengths) != len(self._lengths) or not fits)
        self._said, self._lengths = text, lengths
