"""A drawing made of cells: characters, and lines of braille dots, two across and four down in a cell."""

from __future__ import annotations

import itertools

from rich.text import Text

ACROSS, DOWN = 2, 4  # dots of a cell
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column
_BRAILLE = 0x2800


class Canvas:
    """Cells are counted from the left and from the top. What is drawn later covers what is there; outside nothing is drawn."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._characters = [[" "] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]
        self._dots = [[0] * width for _ in range(height)]

    def put(self, x: int, y: int, character: str, style: str = "") -> None:
        if 0 <= x < self.width and 0 <= y < self.height:
            self._characters[y][x], self._styles[y][x], self._dots[y][x] = character, style, 0

    def write(self, x: int, y: int, text: str, style: str = "") -> None:
        for place, character in enumerate(text):
            self.put(x + place, y, character, style)

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str = "", dashed: bool = False) -> None:
        """A straight line between two points, in cells with fractions; cells that have a character keep it."""
        clipped = _clipped(start, end, (-0.5, -0.5, self.width - 0.5, self.height - 0.5))
        if clipped is None:
            return
        (x, y), (to_x, to_y) = ((_dot(x, ACROSS), _dot(y, DOWN)) for x, y in clipped)
        steps = max(abs(to_x - x), abs(to_y - y), 1)
        for step in range(steps + 1):
            if not dashed or step % 6 < 3:
                self._set(round(x + (to_x - x) * step / steps), round(y + (to_y - y) * step / steps), style)

    def _set(self, dot_x: int, dot_y: int, style: str) -> None:
        x, y = dot_x // ACROSS, dot_y // DOWN
        if 0 <= x < self.width and 0 <= y < self.height and (self._dots[y][x] or self._characters[y][x] == " "):
            self._dots[y][x] |= _DOTS[dot_y % DOWN][dot_x % ACROSS]
            self._characters[y][x], self._styles[y][x] = chr(_BRAILLE + self._dots[y][x]), style

    def lines(self) -> list[Text]:
        """The rows from the top, without what is empty at their ends."""
        drawn = []
        for characters, styles in zip(self._characters, self._styles, strict=True):
            line, begin = Text("".join(characters), no_wrap=True), 0
            for style, run in itertools.groupby(styles):
                end = begin + sum(1 for _ in run)
                if style:
                    line.stylize(style, begin, end)
                begin = end
            line.rstrip()
            drawn.append(line)
        return drawn


def _dot(place: float, dots: int) -> int:
    """The dot of a place, where cell 0 is from -0.5 to 0.5."""
    return int((place + 0.5) * dots - 1e-9)


def _clipped(
    start: tuple[float, float], end: tuple[float, float], box: tuple[float, float, float, float]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The part of a line that is inside a box (left, top, right, bottom), by Liang and Barsky; None where none is."""
    (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    first, last = 0.0, 1.0
    for step, room in ((-dx, x - box[0]), (dx, box[2] - x), (-dy, y - box[1]), (dy, box[3] - y)):
        if step == 0:
            if room < 0:
                return None
            continue
        at = room / step
        if step < 0:
            first = max(first, at)
        else:
            last = min(last, at)
    if first > last:
        return None
    return (x + dx * first, y + dy * first), (x + dx * last, y + dy * last)
