"""A run's options in a TOML file: `cwtool run --config FILE` reads it, `cwtool results show RUN --config` prints one.

    model = "gpt2"
    topk = [10, 100]
    dtype = "bfloat16"

Keys are fields of `RunSpec` or names of options; values are what one types, in TOML's types. Paths start at the folder that
the command is typed in, as they do on a command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.option_file import as_typed, by_name, named, toml_of
from cwa_engine.options import OptionField, option_fields

if TYPE_CHECKING:
    from cwa_engine.spec import RunSpec


def read_config(given: str) -> dict[str, Any]:
    """Field -> what a command line would have for it: texts, or whether a flag is on. Raises InvalidInput."""
    from cwa_engine.spec import RunSpec

    known = by_name(option_fields(RunSpec))
    found: dict[str, Any] = {}
    for key, value in toml_of(user_path(given, "--config"), given).items():
        entry = named(key, known, given)
        if entry.field in found:
            raise InvalidInput(f"{given}: '{key}' is there twice, under two names", hint="leave out one of them")
        found[entry.field] = as_typed(entry, value, f"{given}: {key}")
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
