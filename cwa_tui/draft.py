"""A run as somebody types it: text fields, the RunSpec they mean, and the command that would do the same. No Textual in it."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.catalog import CATALOG, CatalogModel, catalog_model
from cwa_engine.errors import InvalidInput, near_names
from cwa_engine.files import user_path
from cwa_engine.spec import RunSpec, parse_spec
from cwa_tui import format as fmt
from cwa_tui.places import model_name


@dataclass(frozen=True, slots=True)
class Draft:
    """What stands in the form. Nothing of it is checked yet."""

    model: str = ""
    metrics: tuple[str, ...] = ("grad_x_weight",)
    topk: str = "100"
    data_file: str = ""
    eval_limit: str = ""
    fast_perturbation: bool = False
    no_perturbation: bool = False

    def spec(self) -> RunSpec:
        """The run that is meant. Raises InvalidInput, with a hint, for what cannot be meant."""
        if not self.model.strip():
            raise InvalidInput("no model is given", hint="an alias such as smollm2-135m, a Hub id, or a path")
        if not self.metrics:
            raise InvalidInput("no metric is chosen", hint="space chooses the metric under the cursor")
        fields: dict[str, object] = {
            "model": model_name(self.model.strip()),
            "metrics": self.metrics,
            "topk": _whole_numbers("top-k", self.topk, "10, 100"),
            "fast_perturbation": self.fast_perturbation,
        }
        if self.data_file.strip():
            if self.data_file.strip() in ("-", "/dev/stdin"):
                raise InvalidInput("a form has no standard input", hint="`... | cwtool run --data-file -` reads it")
            fields["data_file"] = user_path(self.data_file.strip(), "the file of texts")
        if self.eval_limit.strip():
            fields["eval_limit"] = _whole_number("first texts", self.eval_limit, "32")
        if self.no_perturbation:
            fields["perturbations"] = ()
        return parse_spec(fields)


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


def _whole_numbers(label: str, typed: str, example: str) -> list[int]:
    try:
        numbers = [int(word) for word in typed.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if not numbers:
        said = f"{label} '{typed.strip()}' is no whole number" if typed.strip() else f"{label} is empty"
        raise InvalidInput(said, hint=f"for example {example}")
    return numbers


def _whole_number(label: str, typed: str, example: str) -> int:
    numbers = _whole_numbers(label, typed, example)
    if len(numbers) > 1:
        raise InvalidInput(f"{label} '{typed.strip()}' is more than one number", hint=f"for example {example}")
    return numbers[0]
