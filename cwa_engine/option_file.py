"""Options as they are written into a TOML file: by the name of the field or of the option, in TOML's types. torch-free."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.files import near_files
from cwa_engine.options import Kind, OptionField

MOST_BYTES = 1_000_000
_IN_TOML = {Kind.NUMBER: (int,), Kind.FRACTION: (int, float)}  # types of a value beside str, by kind of option


def by_name(entries: Mapping[str, OptionField]) -> dict[str, OptionField]:
    """The options by every name that a file may use."""
    return {name: entry for entry in entries.values() for name in _names(entry)}


def named(key: str, known: Mapping[str, OptionField], where: str) -> OptionField:
    """The option of a key. Raises InvalidInput, with `where` and near names, where there is none."""
    entry = known.get(key.replace("-", "_"))
    if entry is None:
        hint = did_you_mean(key.replace("-", "_"), known) or "`cwtool run --help` lists the options"
        raise InvalidInput(f"{where}: there is no option '{key}'", hint=hint)
    return entry


def _names(entry: OptionField) -> set[str]:
    return {entry.field, (entry.option.name or entry.field).replace("-", "_")}


def toml_of(path: Path, given: str, what: str = "give --config a TOML file") -> Mapping[str, Any]:
    """The content of a file that the user calls `given`. Raises InvalidInput."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {given}", hint=near_files(path)) from None
    except OSError as error:
        raise InvalidInput(f"{given} cannot be read: {error.strerror}", hint=what) from error
    if len(content) > MOST_BYTES:
        raise InvalidInput(f"{given} is no file of options: it has more than a megabyte", hint="give a TOML file")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{given} is no TOML: {error}", hint='like: model = "gpt2"') from error


def as_typed(entry: OptionField, value: Any, where: str) -> bool | list[str]:
    """The value as a command line would have it. Raises InvalidInput for one that no command line could have."""
    if entry.kind is Kind.FLAG:
        if not isinstance(value, bool):
            raise InvalidInput(f"{where} is {_shown(value)}", hint="write true or false")
        return value
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not entry.several:
        raise InvalidInput(f"{where} takes one value", hint="write it without brackets")
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (str, *_IN_TOML.get(entry.kind, ()))):
            wanted = "a text in quotes" if entry.kind in (Kind.TEXT, Kind.PATH) else entry.kind.value
            raise InvalidInput(f"{where} is {_shown(one)}", hint=f"write {wanted}")
    return [str(one) for one in values]


def _shown(value: Any) -> str:
    return "a table" if isinstance(value, dict) else str(value).lower() if isinstance(value, bool) else repr(value)
