"""Log files read on from where they were left, also where one is replaced, cut short or new."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PIECE = 1 << 16  # bytes read at once, from the end


@dataclass(slots=True)
class _Place:
    """How far a file has been read."""

    inode: int
    offset: int
    rest: bytes = b""  # of a line whose end is not written yet


class LogReader:
    """Reads lines that are new since the last look; at the first look the last `lines` of each file that is there."""

    def __init__(self, lines: int) -> None:
        self._lines = lines
        self._places: dict[Path, _Place] = {}
        self._is_first = True
        self._last: Path | None = None  # of the file whose lines were given last

    def new_lines(self, paths: Iterable[Path]) -> Iterator[tuple[Path | None, str]]:
        """(file where it is another one than before, line)."""
        for path in paths:
            for line in self._of(path):
                yield (None if path == self._last else path), line.decode("utf-8", "backslashreplace")
                self._last = path
        self._is_first = False

    def _of(self, path: Path) -> list[bytes]:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            found = os.fstat(file.fileno())
            place = self._places.get(path)
            if place is None or place.inode != found.st_ino or found.st_size < place.offset:
                start = _start_of_last(file.fileno(), found.st_size, self._lines) if self._is_first else 0
                place = self._places[path] = _Place(found.st_ino, start)
            file.seek(place.offset)
            content = place.rest + file.read(max(0, found.st_size - place.offset))
            place.offset = found.st_size
            *whole, place.rest = content.split(b"\n")
            if self._is_first and place.rest:  # what no line feed ends is shown as well
                whole.append(place.rest)
                place.rest = b""
            return whole


def _start_of_last(file: int, size: int, lines: int) -> int:
    """Where the last lines begin, read from the end: a log may be large."""
    if not lines:
        return size
    position, found = size, b""
    while position and found.rstrip(b"\n").count(b"\n") < lines:
        length = min(_PIECE, position)
        position -= length
        found = os.pread(file, length, position) + found
    kept = found.rstrip(b"\n").split(b"\n")[-lines:]
    return size - len(b"\n".join(kept)) - (len(found) - len(found.rstrip(b"\n")))
