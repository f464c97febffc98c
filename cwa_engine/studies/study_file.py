"""A study in a TOML file.

    question = "scaling"
    name = "three sizes"

    [run]
    topk = [100]
    data-file = "texts.txt"

    [grid]
    model = ["EleutherAI/pythia-70m", "EleutherAI/pythia-410m@step1000"]
    seed = [0, 1]

Keys are fields of `RunSpec` or names of options; values are what one types, in TOML's types. Relative paths start at the
folder of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.files import user_path
from cwa_engine.hub.sources import absolute_name
from cwa_engine.option_file import as_typed, by_name, named, toml_of
from cwa_engine.options import OptionField, option_fields
from cwa_engine.spec import RunSpec
from cwa_engine.typed import ReadName, typed_value

SUFFIX = ".toml"
_KEYS = ("question", "name", "run", "grid")


def read_study(given: str, read_model: ReadName = absolute_name) -> dict[str, Any]:
    """The fields of the `Study` in a file. Raises InvalidInput, which names the file and the key."""
    path = user_path(given, "the study")
    content = toml_of(path, given, "give a TOML file of a study")
    for key in content:
        if key not in _KEYS:
            known = by_name(option_fields(RunSpec))
            hint = f"options are in [run], or in [grid] as lists: move '{key}' there" if key in known else ""
            raise InvalidInput(
                f"{given}: a study has no '{key}'",
                hint=hint or did_you_mean(key, _KEYS) or f"it has {', '.join(_KEYS)}",
            )
    for key in ("question", "name"):
        if not isinstance(content.get(key, ""), str):
            raise InvalidInput(f"{given}: {key} is {content[key]!r:.60}", hint="write a text in quotes")
    reading = _Reading(given, path.parent, read_model)
    fields = {
        "run": {
            key: reading.value(entry, value, f"[run] {key}")
            for key, value in _table(content, "run", given).items()
            for entry in [reading.entry(key, "[run]")]
        },
        "grid": {key: reading.values(key, value) for key, value in _table(content, "grid", given).items()},
    }
    return {**{key: content[key] for key in ("question", "name") if key in content}, **fields}


class _Reading:
    """Values of a file's options. `base` is where its relative paths start."""

    def __init__(self, given: str, base: Any, read_model: ReadName) -> None:
        self._given, self._base, self._read_model = given, base, read_model
        self._known = by_name(option_fields(RunSpec))

    def entry(self, key: str, part: str) -> OptionField:
        return named(key, self._known, f"{self._given}: {part}")

    def values(self, key: str, given: Any) -> list[Any]:
        entry, where = self.entry(key, "[grid]"), f"[grid] {key}"
        if not isinstance(given, list):
            raise InvalidInput(
                f"{self._given}: {where} is {given!r:.60}", hint=f"write a list: {key} = [ ... ], or move it to [run]"
            )
        return [self.value(entry, value, where) for value in given]

    def value(self, entry: OptionField, given: Any, where: str) -> Any:
        text = as_typed(entry, given, f"{self._given}: {where}")
        return text if isinstance(text, bool) else typed_value(entry, text, self._base, self._read_model)


def _table(content: Mapping[str, Any], name: str, given: str) -> Mapping[str, Any]:
    found = content.get(name, {})
    if not isinstance(found, dict):
        raise InvalidInput(f"{given}: {name} is {found!r:.60}", hint=f"write a table: [{name}]")
    return found
