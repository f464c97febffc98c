"""The past as an area in braille dots, two columns and four rows to a cell.

Each column is a measurement. Its lower part may be told apart: it is solid, what lies above is a sparse pattern, so the two
differ without colour as well. A measured zero is one dot, where nothing was measured there is none. No Textual in it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.text import Text

_LEFT, _RIGHT = (0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08)  # a cell's dots from the bottom up
_BRAILLE = 0x2800
SOLID, SPARSE = "\u28ff", "\u2895"  # what the two parts look like, for a legend


_Ends = tuple[int, int]  # of a column: where its solid part ends, and where it ends
_Cell = tuple[str, bool | None]  # a character, and whether something in it is solid; None for an empty one
_NOTHING: _Ends = (0, 0)
_EMPTY: _Cell = (" ", None)


class Level(NamedTuple):
    """A column's height, and how much of it is solid; both from 0 to 1."""

    total: float
    solid: float


Style = Callable[[float, bool], str]  # of a cell: how high its middle is, 0 to 1, and whether something in it is solid


def area_chart(columns: Sequence[Level | None], height: int, style: Style) -> list[Text]:
    """The chart's lines, the top one first; two columns to a cell."""
    ends = [_ends(column, 4 * height) for column in columns]
    right = [*ends[1::2], _NOTHING] if len(ends) % 2 else ends[1::2]
    cells = [_cells(*pair, height) for pair in zip(ends[::2], right, strict=True)]
    return [
        _line(row, functools.partial(style, (height - place - 0.5) / height))
        for place, row in enumerate(zip(*cells, strict=True))
    ]


def _ends(column: Level | None, levels: int) -> _Ends:
    """Where the solid part and the column end, counted from the bottom. What is measured is at least one high."""
    if column is None:
        return _NOTHING
    total = min(levels, max(1, round(levels * column.total)))
    if column.solid >= column.total:
        return total, total
    return min(total, max(round(levels * column.solid), int(column.solid > 0))), total


def _line(cells: Sequence[_Cell], style: Callable[[bool], str]) -> Text:
    line = Text("".join(cell[0] for cell in cells), no_wrap=True)
    begin = 0
    for is_solid, run in itertools.groupby(cell[1] for cell in cells):
        end = begin + sum(1 for _ in run)
        if is_solid is not None:
            line.stylize(style(is_solid), begin, end)
        begin = end
    return line


@functools.lru_cache(maxsize=8192)  # the same columns come again at each drawing, one place further to the left
def _cells(left: _Ends, right: _Ends, height: int) -> tuple[_Cell, ...]:
    """The cells of two columns, the top one first."""
    cells: list[_Cell] = []
    for base in range(4 * (height - 1), -1, -4):
        dots = _dots(_LEFT, 0, left, base) | _dots(_RIGHT, 1, right, base)
        cells.append((chr(_BRAILLE + dots), left[0] > base or right[0] > base) if dots else _EMPTY)
    return tuple(cells)


def _dots(side: Sequence[int], parity: int, ends: _Ends, base: int) -> int:
    """One column of a cell: each dot of the solid part, every second one above it, and the topmost in any case."""
    solid, total = ends
    return sum(
        dot
        for level, dot in enumerate(side, base)
        if level < solid or level == total - 1 or (level < total and (level + parity) % 2 == 0)
    )
