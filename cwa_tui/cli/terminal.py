"""The console that all rich output goes through: markup, emoji codes and control characters in text are only shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cwa_tui.text.visible import visible, visible_text


class Terminal(Console):
    """A console that shows strings and texts as they are, and spells out characters that its encoding lacks."""

    def __init__(
        self, stderr: bool = False, quiet: bool = False, width: int | None = None, line_width: int | None = None
    ) -> None:
        """`line_width` is for tables of one line a row, where it is another than that of the console."""
        super().__init__(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)
        self.line_width = line_width

    def render_str(self, text: str, **options: Any) -> Text:
        """A text of a string, made visible before its width is measured."""
        return super().render_str(visible(text, self.encoding), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything. Those of rich's own control codes hold no text and stay as they are."""
        if isinstance(renderable, Text):
            renderable = visible_text(renderable, self.encoding)
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text, self.encoding), style)
