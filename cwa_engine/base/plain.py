"""Rows from plain values, as JSON and the wire hold them: the reverse of `rows.to_plain`. torch-free."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
JsonMap = dict[str, Any]  # a JSON object, or a message of msgpack, as it is read or written


def from_plain(kind: type[T], value: Any) -> T:
    """A value of a type of rows: a dataclass, tuple, dict, number, text, flag, one of these or None, or anything (Any).

    None where a float must be stands for one that is not finite, and becomes NaN. Fields of a dataclass that are not there
    get their defaults; those that it does not know are left out. Raises ValueError, which names the field.

        from_plain(NumericalFloor, {"repeat": 0.0, "rounding": 1e-6})
    """
    return typing.cast(T, _read(kind, value))


def _read(kind: Any, value: Any) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (part for part in parts if part is not type(None))
        return None if value is None else _read(kind, value)
    if origin is tuple:
        return tuple(_within(str(place), parts[0], entry) for place, entry in enumerate(_a(list, value)))
    if origin is dict:
        return {key: _within(key, parts[1], entry) for key, entry in _a(dict, value).items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        known = {name: hint for name, hint in _hints(kind).items() if name in _a(dict, value)}
        try:
            return kind(**{name: _within(name, hint, value[name]) for name, hint in known.items()})
        except TypeError as error:  # a field without a default
            raise ValueError(str(error).rpartition(") ")[2]) from error
    if kind is Any:
        return value
    if kind is float:
        return math.nan if value is None else float(_a((int, float), value))
    return _a(kind, value)


def _within(name: str, kind: Any, value: Any) -> Any:
    try:
        return _read(kind, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _a(kind: type | tuple[type, ...], value: Any) -> Any:
    """The value, which is of that kind; a flag is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"it is {value!r:.60}")
    return value
