"""Rows from plain values, as JSON and the wire hold them: the reverse of `rows.to_plain`. torch-free."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
JsonMap = dict[str, Any]  # a JSON object, or a message of msgpack, as it is read or written
_Read = Callable[[Any], Any]


def from_plain(kind: type[T], value: Any) -> T:
    """A value of a type of rows: a dataclass, tuple, dict, number, text, flag, one of these or None, or anything (Any).

    None where a float must be stands for one that is not finite, and becomes NaN. Fields of a dataclass that are not there
    get their defaults; those that it does not know are left out. Raises ValueError, which names the field.

        from_plain(NumericalFloor, {"repeat": 0.0, "rounding": 1e-6})
    """
    return typing.cast(T, _reader(typing.cast(Any, kind))(value))


@functools.cache  # what a type is made of is looked at once: thousands of runs are read in a third of the time
def _reader(kind: Any) -> _Read:
    """What reads a value of a type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (part for part in parts if part is not type(None))
        read = _reader(kind)
        return lambda value: None if value is None else read(value)
    if origin is tuple:
        return _tuple_of(_reader(parts[0]))
    if origin is dict:
        return _dict_of(_reader(parts[1]))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _fields_of(kind)
    if kind is Any:
        return lambda value: value
    if kind is float:
        return _float
    return lambda value: value if type(value) is kind else _a(kind, value)


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    return math.nan if value is None else float(_a((int, float), value))


def _tuple_of(read: _Read) -> _Read:
    return lambda value: tuple([_within(str(place), read, entry) for place, entry in enumerate(_a(list, value))])


def _dict_of(read: _Read) -> _Read:
    return lambda value: {key: _within(key, read, entry) for key, entry in _a(dict, value).items()}


def _fields_of(kind: type) -> _Read:
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    readers: dict[str, _Read] = {}

    def read(value: Any) -> Any:
        if not readers:  # not before: a type may have fields of its own type
            readers.update({name: _reader(hints[name]) for name in names})
        there = _a(dict, value)
        try:
            fields = {name: reader(there[name]) for name, reader in readers.items() if name in there}
        except ValueError:  # once more, to name the field
            fields = {name: _within(name, reader, there[name]) for name, reader in readers.items() if name in there}
        try:
            return kind(**fields)
        except TypeError as error:  # a field without a default
            raise ValueError(str(error).rpartition(") ")[2]) from error

    return read


def _within(name: str, read: _Read, value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _a(kind: type | tuple[type, ...], value: Any) -> Any:
    """The value, which is of that kind; a flag is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"it is {value!r:.60}")
    return value
