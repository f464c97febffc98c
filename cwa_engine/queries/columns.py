"""Types of columns in SQL, made from the types that rows are made of: no column is typed twice. torch-free."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEXT = "VARCHAR"
_SIMPLE: Mapping[Any, str] = {str: TEXT, Path: TEXT, int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}


def columns_of(row: type) -> dict[str, str]:
    """Field of a dataclass -> its type in SQL, in order. Raises TypeError for a field that no column can hold."""
    hints = typing.get_type_hints(row)
    return {field.name: sql_type(hints[field.name]) for field in dataclasses.fields(row)}


def sql_type(hint: Any) -> str:
    """The type of a column for values of a type: BIGINT for `int | None`, VARCHAR[] for `tuple[str, ...]`.

    What may be of several types is a text. Raises TypeError for what no column can hold.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return sql_type(parts[0])
    if origin in (types.UnionType, typing.Union):
        found = {sql_type(part) for part in parts if part is not type(None)}
        return found.pop() if len(found) == 1 else TEXT
    if origin is typing.Literal:
        return TEXT
    if origin is tuple:
        return f"{sql_type(parts[0])}[]"
    if origin in (dict, Mapping):
        return f"MAP({sql_type(parts[0])}, {sql_type(parts[1])})"
    if hint not in _SIMPLE:
        raise TypeError(f"no column holds {hint}")
    return _SIMPLE[hint]
