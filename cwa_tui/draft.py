"""A run as typed into the form, and the RunSpec made of it. No Textual in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cwa_engine.base.errors import InvalidInput, near_names
from cwa_engine.guide.catalog import CATALOG, CatalogModel, catalog_model
from cwa_engine.options import Kind, OptionField, option_fields
from cwa_engine.spec import RunSpec, parse_spec
from cwa_tui import format as fmt
from cwa_tui.typed import STDIN, typed_value


def form_fields() -> list[OptionField]:
    """The options in the form, in its order."""
    return [entry for entry in option_fields(RunSpec).values() if entry.option.label]


@dataclass(frozen=True, slots=True)
class Draft:
    """The form by field: a text, the chosen ones of several, or whether it is ticked. Nothing is checked yet.

    A field with a flag that empties it (`Option.no`) is True where that is ticked. An empty text stands for the default.
    """

    values: Mapping[str, Any] = field(default_factory=lambda: {"metrics": ("grad_x_weight",), "topk": "100"})

    def spec(self) -> RunSpec:
        """The spec of the run. Raises InvalidInput, with a hint, for what makes no spec."""
        if not str(self.values.get("model", "")).strip():
            raise InvalidInput("no model is given", hint="an alias such as smollm2-135m, a Hub id, or a path")
        if not self.values.get("metrics"):
            raise InvalidInput("no metric is chosen", hint="space chooses the metric under the cursor")
        fields = {}
        for entry in form_fields():
            value = self.values.get(entry.field)
            if isinstance(value, str):
                value = value.strip() and _value_of(entry, value.strip())
            elif entry.option.no:
                value = () if value else None
            if value or value == ():
                fields[entry.field] = value
        if fields.get("data_file") == STDIN:
            raise InvalidInput("a form has no standard input", hint="`... | cwtool run --data-file -` reads it")
        return parse_spec(fields)


def _value_of(entry: OptionField, typed: str) -> Any:
    words = typed.replace(",", " ").split() if entry.several and entry.kind is not Kind.TEXT else [typed]
    return typed_value(entry, words)


def model_names(warm: list[str]) -> list[str]:
    """Names worth suggesting: what is warm, then aliases, then Hub ids of the guide."""
    aliases = [entry.alias for entry in CATALOG if entry.alias]
    return list(dict.fromkeys([*warm, *aliases, *(entry.name for entry in CATALOG)]))


def about_model(typed: str, warm: list[str]) -> str:
    """One line on what the guide knows of a name that is being typed."""
    name = typed.strip().lower().partition("@")[0].rstrip("/")
    if not name:
        return f"warm: {', '.join(warm)}" if warm else "an alias, a Hub id, a folder or a .gguf file"
    if exact := catalog_model(name):
        return _facts(exact) + (", warm" if {exact.name, exact.alias} & set(warm) else "")
    names = model_names(warm)
    near = [known for known in names if name in known.lower()] or near_names(name, names)
    return f"known: {', '.join(near[:4])}" if near else "not in the guide: taken as a Hub id or a path"


def _facts(entry: CatalogModel) -> str:
    token = ", needs HF_TOKEN" if entry.gated else ""
    return f"{entry.name}, {fmt.millions(entry.parameters_m)} weights, {entry.licence}{token}"
