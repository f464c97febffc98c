"""Lines of text that are set often; those that changed are drawn, the others stay on screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from cwa_tui.text.visible import visible_text

LAST_KNOWN = "dim"  # the style of what was true when the daemon answered last


class QuietLines(Widget):
    """`say` sets the lines. With `height: auto` the widget is as high as it has lines."""

    _lines: Sequence[Text] = ()

    def say(self, lines: Sequence[Text], last_known: bool = False) -> None:
        """Show lines; those that are only `last_known` lose their colours, and are grey."""
        shown = [visible_text(line) for line in lines]
        if last_known:
            shown = [Text(line.plain, LAST_KNOWN) for line in shown]
        before, self._lines = self._lines, shown
        changed = [
            Region(0, place, self.size.width, 1)
            for place in range(max(len(before), len(shown)))
            if not _same(before[place : place + 1], shown[place : place + 1])
        ]
        if len(before) != len(shown) and self.styles.is_auto_height:
            self.refresh(layout=True)
        elif changed:
            self.refresh(*changed)

    @property
    def line_count(self) -> int:
        return len(self._lines)

    @property
    def text(self) -> str:
        """What is shown, without styles."""
        return "\n".join(line.plain for line in self._lines)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines)

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        strip = Strip([])
        if y < len(self._lines):
            line = self._lines[y].copy()
            line.truncate(width, overflow="ellipsis")
            strip = Strip(line.render(self.app.console), line.cell_len)
        return strip.extend_cell_length(width).apply_style(self.rich_style)


def _same(before: Sequence[Text], now: Sequence[Text]) -> bool:
    return [(line.plain, line.spans, line.style) for line in before] == [
        (line.plain, line.spans, line.style) for line in now
    ]
