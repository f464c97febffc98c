"""A lock on an open file, as Linux has it: it belongs to whoever has the file open, and ends with the last of them."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Any

_LOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length (0: to the end), pid


def take(file: Any) -> None:
    """Lock a file that is open for writing, by its descriptor or object. Raises BlockingIOError where another has it."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _whole_file())


def is_taken(file: Any) -> bool:
    """Whether anybody who opened the file by itself has the lock. Asks without taking it."""
    kind, *_ = struct.unpack(_LOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, _whole_file()))
    return bool(kind != fcntl.F_UNLCK)


def _whole_file() -> bytes:
    return struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
