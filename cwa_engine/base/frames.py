"""Rows as pandas frames. torch-free; pandas is imported when a frame is asked for."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, did_you_mean

if TYPE_CHECKING:
    import pandas

# Types of columns that may lack values.
_NULLABLE: Mapping[Any, str] = {int | None: "Int64", bool | None: "boolean", float | None: "float64"}


def frame_of(kind: type, rows: Iterable[Any]) -> pandas.DataFrame:
    """Rows of a dataclass as a frame, a column for each field. Raises InvalidInput where pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InvalidInput(
            "pandas is not installed", hint="`pip install pandas`, or take the rows as they are"
        ) from None
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in dataclasses.fields(kind)]
    frame = pandas.DataFrame([[getattr(row, name) for name in names] for row in rows], columns=names)
    return frame.astype({name: _NULLABLE[hints[name]] for name in names if hints[name] in _NULLABLE})


def frame_named(name: str, tables: Mapping[str, tuple[type, Iterable[Any]]], what: str) -> pandas.DataFrame:
    """The frame of this name among the rows that `what` has, by name. Raises InvalidInput, naming near ones."""
    if name not in tables:
        hint = did_you_mean(name, tables) or f"it has: {', '.join(tables) or 'none'}"
        raise InvalidInput(f"{what} has no rows called '{name}'", hint=hint)
    return frame_of(*tables[name])
