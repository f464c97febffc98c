"""Messages as bytes: msgpack maps, of bounded size, depth and number of elements.

A reply larger than PART_BYTES goes in parts, `{id, part, parts, data}`.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NoReturn

import msgpack

from cwa_daemon.protocol.limits import MAX_DEPTH, MAX_MESSAGE_BYTES, MAX_REQUEST_ELEMENTS, PART_BYTES
from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.plain import JsonMap

_PEEK_BYTES = 128


def encode(message: JsonMap, most_bytes: int = MAX_MESSAGE_BYTES, unicode_errors: str = "strict") -> bytes:
    """A message as msgpack. Raises InvalidInput where it is too large to be accepted, or holds what cannot be sent."""
    try:
        frame: bytes = msgpack.packb(message, unicode_errors=unicode_errors)
    except (ValueError, TypeError, OverflowError) as error:  # of a surrogate, an object, a number of more than 64 bits
        raise InvalidInput(f"a message cannot be sent: {error}") from error
    _check_size(len(frame), most_bytes)
    return frame


def parts(frame: bytes, request_id: Any) -> list[bytes]:
    """A reply as it is sent to a client that joins parts: whole, or in parts that are messages of their own."""
    if len(frame) <= PART_BYTES:
        return [frame]
    pieces = [frame[offset : offset + PART_BYTES] for offset in range(0, len(frame), PART_BYTES)]
    count = len(pieces)
    return [encode({"id": request_id, "part": n, "parts": count, "data": piece}) for n, piece in enumerate(pieces)]


def decode(frame: bytes, most_bytes: int = MAX_MESSAGE_BYTES, most_elements: int = MAX_REQUEST_ELEMENTS) -> JsonMap:
    """The map in a frame. Raises InvalidInput for anything but a sane one: size, depth, types and numbers are bounded.

    What is cheap to write may cost a lot to read: a byte is an empty list. So elements are counted while they are read.
    """
    _check_size(len(frame), most_bytes)
    counted = _Counted(most_elements)
    try:
        message = msgpack.unpackb(
            frame,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            timestamp=0,
            list_hook=counted.as_list,
            object_pairs_hook=counted.as_map,
            max_array_len=min(len(frame), most_elements),
            max_map_len=min(len(frame), most_elements),
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise InvalidInput(f"not a msgpack message: {error}") from error
    if not isinstance(message, dict):
        raise InvalidInput(f"a message is a map, not {type(message).__name__}")
    _check(message, MAX_DEPTH)
    return message


def peek(frame: bytes) -> tuple[str | None, int | None]:
    """(op, id) of a message that begins with them, as those of clients do, without a look at the rest; None for the others."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(frame[:_PEEK_BYTES])
    found: dict[Any, Any] = {}
    with contextlib.suppress(ValueError, TypeError, msgpack.exceptions.UnpackException):
        for _ in range(min(2, unpacker.read_map_header())):
            key = unpacker.unpack()
            found[key] = unpacker.unpack()
    op, number = found.get("op"), found.get("id")
    return op if isinstance(op, str) else None, number if type(number) is int else None


class _Counted:
    """Builds the lists and maps of a message, as long as there are not too many elements in them."""

    def __init__(self, most: int) -> None:
        self._left = most

    def as_list(self, items: list[Any]) -> list[Any]:
        self._count(len(items) + 1)
        return items

    def as_map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count(len(pairs) + 1)
        return dict(pairs)

    def _count(self, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            raise ValueError("it has too many elements")


def _check_size(size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise InvalidInput(f"a message of {size_bytes:,} bytes exceeds {most_bytes:,}")


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not used here")


def _check(value: object, depth: int) -> None:
    if depth < 0:
        raise InvalidInput(f"a message is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise InvalidInput("keys of a message are strings")
            _check(entry, depth - 1)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput("numbers of a message are finite")
    elif not isinstance(value, (str, bytes, int, float, type(None))):
        raise InvalidInput(f"a message holds no {type(value).__name__}")
