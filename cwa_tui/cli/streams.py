"""Standard streams of a command: characters they cannot hold are spelled out, a failed write is one line of error.

A reader that has left ends a command as SIGPIPE would, with 141; every other failure with 1.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from cwa_tui.text.locales import is_c
from cwa_tui.text.visible import SPELLED_OUT

if TYPE_CHECKING:
    from typing_extensions import Buffer

BROKEN_PIPE = 141  # what a shell reports of a process that SIGPIPE ended
_NAMES = {1: "standard output", 2: "standard error"}


class StreamFailed(Exception):
    """A standard stream cannot be written. It is no OSError, so that nobody takes it for an error of a file."""

    def __init__(self, number: int, reason: OSError) -> None:
        super().__init__(f"{_NAMES[number]} cannot be written: {reason.strerror}")
        self.number = number
        self.reader_left = isinstance(reason, BrokenPipeError)


class _File(io.FileIO):
    """The file behind a standard stream."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self._number = number

    def write(self, data: Buffer, /) -> int:
        try:
            while (written := super().write(data)) is None:  # another program made it non-blocking
                select.select([], [self._number], [])
        except OSError as error:
            raise StreamFailed(self._number, error) from error
        return written


def open_streams() -> None:
    """Make the standard streams ready for any text. A closed one fails as a full disk does, when it is written to."""
    for number in (0, 1, 2):
        _fill(number)
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def flush_streams() -> None:
    """Write what is still buffered. Raises StreamFailed."""
    sys.stdout.flush()
    sys.stderr.flush()


def give_up(failure: StreamFailed) -> int:
    """Say why on standard error if that works, and give the exit code. The stream that failed is not written again."""
    _silence(failure.number)
    if failure.reader_left:
        _silence(3 - failure.number)  # what is buffered for the other one is dropped as well
        return BROKEN_PIPE
    try:
        print(f"Error: {failure}", file=sys.stderr, flush=True)
    except StreamFailed:
        _silence(2)
    return 1


def _fill(number: int) -> None:
    """Put /dev/null, for reading, where a stream is closed, or the next file that is opened would take its place."""
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)


def _stream(number: int, known: TextIO | None) -> TextIO:
    if isinstance(known, io.TextIOWrapper):
        known.flush()
        known.reconfigure(errors=SPELLED_OUT)  # the full-screen interface draws on this one
    by_line = number == 2 or bool(known and known.line_buffering)
    file = io.BufferedWriter(_File(number))
    asks_for_ascii = is_c(os.environ) and not os.environ.get("PYTHONIOENCODING")
    encoding = "ascii" if asks_for_ascii else known.encoding if known else "utf-8"
    return io.TextIOWrapper(file, encoding, SPELLED_OUT, line_buffering=by_line)


def _silence(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
