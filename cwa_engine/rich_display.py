"""How records show themselves in a notebook. They know nothing of pages: `import cwa_engine` says what draws them."""

from __future__ import annotations

from collections.abc import Callable

Draw = Callable[[object], str]
_drawn_by: list[Draw] = []


class RichDisplay:
    """A record that a notebook shows as HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return _drawn_by[-1](self)


def draw_with(draw: Draw) -> None:
    """Have the HTML of all records made by this function."""
    _drawn_by.append(draw)
