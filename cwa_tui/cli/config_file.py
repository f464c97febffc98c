"""A run's options in a TOML file: `cwtool run --config FILE` reads it, `cwtool results show RUN --config` prints one.

    model = "gpt2"
    topk = [10, 100]
    dtype = "bfloat16"

Keys are fields of `RunSpec` or names of options; values are what one types, in TOML's types. Paths start at the folder that
the command is typed in, as they do on a command line.
"""

from __future__ import annotations

from typing import Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.option_file import as_typed, by_name, named, toml_of
from cwa_engine.options import option_fields


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
