"""The one door from rich to a terminal: text is shown and never obeyed, be it markup, emoji codes or control characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cwa_tui.visible import visible, visible_text


class Terminal(Console):
    """A console that shows strings and texts as they are; where its encoding lacks a character, that is spelled out."""

    def __init__(self, stderr: bool = False, quiet: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text of a string; made visible before it is measured, so that columns are as wide as they must be."""
        return super().render_str(visible(text, self.encoding), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of anything; those of rich's own control codes go through, as they hold no text."""
        if isinstance(renderable, Text):
            renderable = visible_text(renderable, self.encoding)
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text, self.encoding), style)
