"""A run's options in a TOML file: `cwtool run --config FILE` reads it, `cwtool results show RUN --config` prints one.

    model = "gpt2"
    topk = [10, 100]
    dtype = "bfloat16"

Keys are fields of `RunSpec` or names of options; values are what one types, in TOML's types. Paths start at the folder that
the command is typed in, as they do on a command line.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.files import near_files, user_path
from cwa_engine.options import Kind, OptionField, option_fields

if TYPE_CHECKING:
    from cwa_engine.spec import RunSpec

MOST_BYTES = 1_000_000
_IN_TOML = {Kind.NUMBER: (int,), Kind.FRACTION: (int, float)}  # types of a value beside str, by kind of option


def read_config(given: str) -> dict[str, Any]:
    """Field -> what a command line would have for it: texts, or whether a flag is on. Raises InvalidInput."""
    from cwa_engine.spec import RunSpec

    entries = option_fields(RunSpec)
    by_name = {name: entry for entry in entries.values() for name in _names(entry)}
    found: dict[str, Any] = {}
    for key, value in _content(user_path(given, "--config"), given).items():
        entry = by_name.get(key.replace("-", "_"))
        if entry is None:
            raise InvalidInput(
                f"{given}: there is no option '{key}'",
                hint=did_you_mean(key.replace("-", "_"), by_name) or "`cwtool run --help` lists the options",
            )
        if entry.field in found:
            raise InvalidInput(f"{given}: '{key}' is there twice, under two names", hint="leave out one of them")
        found[entry.field] = _as_typed(entry, value, f"{given}: {key}")
    return found


def config_text(spec: RunSpec) -> str:
    """A file of which `read_config` makes the same spec. Defaults are written as well, in case a later version has others."""
    lines = ["# options of a run: `cwtool run --config FILE`; what is typed beside it wins"]
    for name, entry in option_fields(type(spec)).items():
        value = getattr(spec, name)
        if name == "data_file" and spec.data_name and spec.data_name.startswith("/"):
            value = spec.data_name  # what the user named, of which data_file is a copy
        if value is not None and not (name == "metrics" and not value):
            lines.append(f"{name} = {_toml(value, entry)}")
    return "\n".join(lines)


def _names(entry: OptionField) -> set[str]:
    return {entry.field, (entry.option.name or entry.field).replace("-", "_")}


def _content(path: Path, given: str) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {given}", hint=near_files(path)) from None
    except OSError as error:
        raise InvalidInput(f"{given} cannot be read: {error.strerror}", hint="give --config a TOML file") from error
    if len(content) > MOST_BYTES:
        raise InvalidInput(f"{given} is no file of options: it has more than a megabyte", hint="give a TOML file")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{given} is no TOML: {error}", hint='like: model = "gpt2"') from error


def _as_typed(entry: OptionField, value: Any, where: str) -> bool | list[str]:
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


def _toml(value: Any, entry: OptionField) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(one, entry) for one in value)}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return "".join(_escaped(json.dumps(str(value), ensure_ascii=False)))


def _escaped(quoted: str) -> Iterator[str]:
    """JSON's quotes are TOML's, but for delete, which TOML wants escaped."""
    for character in quoted:
        yield "\\u007f" if character == "\x7f" else character
