"""Events read back from the maps that `events.to_dict` makes. Needs neither torch nor pydantic."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from cwa_engine.base import events
from cwa_engine.base.errors import VersionMismatch
from cwa_engine.base.plain import from_plain

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
        events.Pulled,
        events.Inspected,
        events.CardMade,
        events.Generated,
        events.PromptAnswered,
    )
}


def event_from_plain(plain: Mapping[str, Any]) -> events.Event | None:
    """The event of a map made by `events.to_dict`, or None for a kind that this version does not know.

    Values are read as `from_plain` reads them. Raises VersionMismatch for an event that lacks a field.

    >>> event_from_plain({"kind": "stage_started", "stage": "score"})
    StageStarted(stage='score')
    """
    kind = _KINDS.get(plain["kind"])
    if kind is None:
        return None
    try:
        return kind(
            **{name: from_plain(type_, plain[name]) for name, type_ in _types(kind.kind).items() if name in plain}
        )
    except (TypeError, ValueError) as error:
        raise VersionMismatch(
            f"an event of kind {kind.kind!r} comes from another version of cwtool: {error}",
            hint="`cwtool daemon restart --when-idle` brings daemon and command together",
        ) from error


@functools.cache
def _types(name: str) -> dict[str, Any]:
    """Field -> its type, of an event by its kind."""
    kind = _KINDS[name]
    try:
        types = get_type_hints(kind)
    except NameError:  # it has rows; importing them takes 25 ms, and whoever waits for the first progress needs none
        from cwa_engine import prompt_rows, rows, weight_rows

        types = get_type_hints(kind, localns=vars(rows) | vars(prompt_rows) | vars(weight_rows))
    return {field.name: types[field.name] for field in fields(kind)}
