"""A spec as a `cwtool run` command line and as a TOML file, to copy."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from cwa_engine.options import WEIGHT, Kind, OptionField, option_fields, options_of
from cwa_engine.spec import RunSpec

_ALWAYS = ("model", "metrics", "topk")  # written even if they have their defaults


def command_of(spec: RunSpec, *more: BaseModel) -> str:
    """The command line of the same run, with every option of the spec, and of `more`, that differs from its default."""
    words = ["cwtool", "run"]
    for name, entry in option_fields(RunSpec).items():
        value = _typed(spec, name)
        if name == "metrics" and not value:  # the run damages given weights
            continue
        if value != entry.default or name in _ALWAYS:
            words += _words(entry, value)
    for options in more:
        for name, entry in option_fields(type(options)).items():
            if (value := getattr(options, name)) != entry.default:
                words += _words(entry, value)
    return shlex.join(words)


def weight_command_of(spec: RunSpec, target: str) -> str:
    """The command line of the card of a weight: with the options of `cwtool weight` that differ from its defaults."""
    words = ["cwtool", "weight", spec.model, target]
    for entry in options_of(WEIGHT, RunSpec):
        value = _typed(spec, entry.field)
        is_left_out = entry.several and not value
        if entry.field != "model" and value != entry.default and not is_left_out:
            words += _words(entry, value)
    return shlex.join(words)


def _typed(spec: RunSpec, name: str) -> Any:
    """The value of an option as the user typed it."""
    if name == "data_file" and spec.data_name:  # the file is a copy; the user named another file, or a pipe
        return spec.data_name if spec.data_name.startswith("/") else "-"
    return getattr(spec, name)


def option_words(fields: Mapping[str, Any]) -> list[str]:
    """`["--topk", "10", "100"]`: fields of a spec as options of the command line, in the order of the options."""
    known = option_fields(RunSpec)
    return [word for name, entry in known.items() if name in fields for word in _words(entry, fields[name])]


def _words(entry: OptionField, value: Any) -> list[str]:
    if entry.kind is Kind.FLAG:
        return [entry.flag if value else entry.no_flag]
    if not entry.several:
        return [entry.flag, str(value)]
    if not value:
        return [entry.no_flag] if entry.option.no else [entry.flag, ""]
    return [entry.flag, *map(str, value)]


def config_text(spec: RunSpec) -> str:
    """A file of which `cwtool run --config` makes the same spec.

    Defaults are written as well, in case a later version has others.
    """
    lines = ["# options of a run: `cwtool run --config FILE`; what is typed beside it wins"]
    for name, entry in option_fields(type(spec)).items():
        value = getattr(spec, name)
        if name == "data_file" and spec.data_name and spec.data_name.startswith("/"):
            value = spec.data_name  # what the user named, of which data_file is a copy
        if value is not None and not (name == "metrics" and not value):
            lines.append(f"{name} = {_toml(value, entry)}")
    return "\n".join(lines)


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
