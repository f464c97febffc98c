"""Lists in JSON: of texts, of objects with named fields, of bare sequences, or places by the name of their parameter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.weight_files.entries import (
    Listed,
    key_of,
    stored,
    target_of_entry,
    target_of_line,
    target_of_sequence,
    whole_numbers,
)

# Keys of what a list is wrapped in.
_WRAPPERS = ("weights", "superweights", "targets", "entries", "items", "coordinates", "criticalweights", "topk", "top")


def targets_of_json(text: str, path: Path) -> list[Listed]:
    """The targets of a JSON document, or of one in each line, with where they stand. Raises DataError, naming the entry."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            content = [json.loads(line) for line in lines] if len(lines) > 1 else None
        except json.JSONDecodeError:
            content = None
        if content is None:
            raise DataError(
                f"weights file {path} is not JSON: line {error.lineno}: {error.msg}",
                hint='write a list of targets, like ["NAME[out,in]"]',
            ) from None
    except RecursionError:
        raise DataError(f"weights file {path} is nested too deeply to be read") from None
    return [(f"entry {where}", _target(entry, where, path)) for where, entry in _entries(content, "")]


def _entries(content: object, where: str) -> Iterator[tuple[str, object]]:
    """(where it is in the document, what stands for one weight)"""
    if isinstance(content, list):
        yield from ((f"{where}[{place}]", entry) for place, entry in enumerate(content))
        return
    if not isinstance(content, Mapping):
        yield where, content
        return
    wrapped = [name for name, value in content.items() if key_of(name) in _WRAPPERS and _is_list_of_entries(value)]
    if wrapped:
        yield from _entries(content[wrapped[0]], wrapped[0])
    elif content and all(isinstance(value, list) for value in content.values()):
        for name, places in content.items():
            yield from ((f"{name}[{number}]", _Placed(name, place)) for number, place in enumerate(_places(places)))
    else:
        yield where or "the object", content


def _is_list_of_entries(value: object) -> bool:
    return isinstance(value, list) and bool(value) and not any(isinstance(part, (int, float)) for part in value)


def _places(value: list[object]) -> list[object]:
    """The places of a parameter: [[3968, 7003], [570, 8]], or one of them, [3968, 7003]."""
    return value if any(isinstance(part, list) for part in value) else [value]


class _Placed:
    """A place in a parameter that is named before all of its places."""

    def __init__(self, name: str, place: object) -> None:
        self.name, self.place = name, place


def _target(entry: object, where: str, path: Path) -> str:
    try:
        match entry:
            case _Placed():
                return stored(entry.name, whole_numbers(entry.place))
            case str():
                return target_of_line(entry)
            case Mapping():
                return target_of_entry(entry)
            case list():
                return target_of_sequence(entry)
        raise InvalidInput(f"'{str(entry)[:80]}' names no weight", hint='write it like "NAME[out,in]"')
    except InvalidInput as error:
        raise DataError(f"{path}, entry {where}: {error.message}", hint=error.hint) from None
