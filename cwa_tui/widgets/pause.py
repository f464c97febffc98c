"""Drawing at most every so many seconds what grows faster than anybody reads it."""

from __future__ import annotations

from collections.abc import Callable

from textual.widget import Widget


class Pause:
    """`ask` draws at once, and once more at the end of the pause where it was asked again meanwhile."""

    def __init__(self, widget: Widget, seconds: float, draw: Callable[[], None]) -> None:
        self._widget, self._seconds, self._draw = widget, seconds, draw
        self._lasts, self._is_asked = False, False

    def ask(self) -> None:
        if self._lasts:
            self._is_asked = True
            return
        self._lasts, self._is_asked = True, False
        self._widget.set_timer(self._seconds, self._end)
        self._draw()

    def _end(self) -> None:
        self._lasts = False
        if self._is_asked:
            self.ask()
