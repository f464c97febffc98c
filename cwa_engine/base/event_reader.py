"""Events and rows read back from the maps that `to_plain` makes. Needs neither torch nor pydantic."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cwa_engine.base import events
from cwa_engine.base.errors import VersionMismatch

T = TypeVar("T")

_KINDS: dict[str, type[events.Event]] = {
    event.kind: event
    for event in (
        events.StageStarted,
        events.StageFinished,
        events.Progress,
        events.Note,
        events.BaselineMeasured,
        events.TopK,
        events.DamageMeasured,
        events.VerdictReached,
        events.Planned,
    )
}


def event_from_plain(plain: Mapping[str, Any]) -> events.Event | None:
    """The event of a map made by `events.to_dict`, or None for a kind that this version does not know.

    Raises VersionMismatch as `from_plain` does.

    >>> event_from_plain({"kind": "stage_started", "stage": "score"})
    StageStarted(stage='score')
    """
    kind = _KINDS.get(plain["kind"])
    return from_plain(kind, plain) if kind else None


def from_plain(kind: type[T], plain: Mapping[str, Any]) -> T:
    """An event or a row from the map that `to_plain` makes of it.

    A number that `to_plain` made None, because it was not finite, is nan; in an optional field it stays None. Fields that
    this version does not know are left out. Raises VersionMismatch if a field is missing that has no default.
    """
    given = {}
    for name, type_, is_required in _fields(kind):  # type: ignore[arg-type]  # mypy takes a type[T] for unhashable
        if name in plain:
            given[name] = _read_value(type_, plain[name])
        elif is_required:
            raise VersionMismatch(
                f"a {kind.__name__} came without {name!r}: the other side is another version of cwtool",
                hint="`cwtool daemon restart --when-idle` brings daemon and command together",
            )
    return kind(**given)


def _read_value(type_: Any, plain: Any) -> Any:
    """A value of a field's type from what JSON holds for it."""
    if type_ is float:
        return math.nan if plain is None else float(plain)
    if isinstance(type_, UnionType):  # X | None is the only one
        return None if plain is None else _read_value(get_args(type_)[0], plain)
    if get_origin(type_) is tuple:
        return tuple(_read_value(get_args(type_)[0], entry) for entry in plain)
    return from_plain(type_, plain) if hasattr(type_, "__dataclass_fields__") else plain


@functools.cache
def _fields(kind: Any) -> list[tuple[str, Any, bool]]:
    """(name, type, whether it is required) of each field."""
    try:
        types = get_type_hints(kind)
    except NameError:  # it has rows; importing them takes 25 ms, and whoever waits for the first progress needs none
        from cwa_engine import rows

        types = get_type_hints(kind, localns=vars(rows))
    return [
        (field.name, types[field.name], field.default is field.default_factory is dataclasses.MISSING)
        for field in dataclasses.fields(kind)
    ]
