"""The models of the guide, from models.toml: read when they are first asked for, as that takes 0.03 s. torch-free."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

SMALL_BELOW, LARGE_ABOVE = 1_000_000_000, 7_000_000_000  # weights
_JOINED = ("questions", "caveats")  # of a model these come after those of its family


class Tier(StrEnum):
    """What a model's size usually allows."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"

    @property
    def sizes(self) -> str:
        return {"small": "below 1B weights", "medium": "1B to 7B weights", "large": "above 7B weights"}[self.value]

    @property
    def allows(self) -> str:
        return {
            "small": "full analysis, with damage",
            "medium": "the fast perturbation, or fewer texts",
            "large": "discovery with few texts, without damage",
        }[self.value]


def tier_of(parameters: int) -> Tier:
    """The tier of a model with so many weights."""
    if parameters < SMALL_BELOW:
        return Tier.SMALL
    return Tier.LARGE if parameters > LARGE_ABOVE else Tier.MEDIUM


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One model of the guide. What the fields mean is written at the top of models.toml."""

    name: str  # the Hub id
    family: str
    parameters: int
    model_type: str
    architecture: str
    tokenizer: str
    licence: str
    good_for: str
    config: Mapping[str, Any] = field(hash=False)
    alias: str | None = None
    revision: str | None = None
    gated: bool = False
    questions: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    gguf_package: str | None = None

    @property
    def parameters_m(self) -> float:
        """Millions of weights."""
        return self.parameters / 1e6

    @property
    def tier(self) -> Tier:
        return tier_of(self.parameters)

    @property
    def licence_page(self) -> str:
        return f"https://huggingface.co/{self.name}"


@cache
def catalog() -> tuple[CatalogModel, ...]:
    """Every model of the guide, family by family, in each from small to large."""
    families = tomllib.loads(Path(__file__).with_name("models.toml").read_text("utf-8"))["family"]
    return tuple(model for family in families for model in _models(family))


def catalog_model(name: str) -> CatalogModel | None:
    """The entry with this alias or Hub id; upper and lower case are the same."""
    return _by_name().get(name.lower())


def known_names() -> list[str]:
    """Every alias and Hub id of the guide."""
    return [name for entry in catalog() for name in (entry.alias, entry.name) if name]


@cache
def _by_name() -> dict[str, CatalogModel]:
    return {name.lower(): entry for entry in catalog() for name in (entry.alias, entry.name) if name}


def _models(family: dict[str, Any]) -> Iterator[CatalogModel]:
    models = family.pop("model")
    family["family"] = family.pop("name")
    for own in models:
        fields = {**family, **own, "name": own["id"], "config": {**family["config"], **own["config"]}}
        for name in _JOINED:
            fields[name] = tuple(dict.fromkeys([*family.get(name, ()), *own.get(name, ())]))
        del fields["id"]
        yield CatalogModel(**fields)
