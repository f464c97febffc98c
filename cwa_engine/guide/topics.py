"""What people ask the guide, from topics.toml and troubles.toml: questions, purposes, workflows, and symptoms. torch-free."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.guide.catalog import CatalogModel, catalog, catalog_model
from cwa_engine.guide.matching import best_matches


@dataclass(frozen=True, slots=True)
class Topic:
    """A question, with what to do and the models for it. What the fields mean is written at the top of topics.toml."""

    name: str
    kind: str
    title: str
    words: tuple[str, ...]
    answer: str
    models: tuple[str, ...]  # names for `catalog_model`, in the order in which they are recommended
    commands: tuple[str, ...]

    @property
    def recommended(self) -> list[CatalogModel]:
        """The models to take, in this order."""
        return [entry for name in self.models if (entry := catalog_model(name))]

    @property
    def others(self) -> list[CatalogModel]:
        """Models that help to answer it as well."""
        first = self.recommended
        return [entry for entry in catalog() if self.name in entry.questions and entry not in first]


@dataclass(frozen=True, slots=True)
class Step:
    """A reason for a trouble, what to do about it, and the command lines that do it."""

    because: str
    do: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """A symptom, with steps against it: the likeliest reason first."""

    name: str
    title: str
    words: tuple[str, ...]
    steps: tuple[Step, ...]


@cache
def topics() -> tuple[Topic, ...]:
    """Every topic of the guide."""
    return tuple(Topic(**_with_tuples(fields)) for fields in _read("topics.toml")["topic"])


@cache
def troubles() -> tuple[Trouble, ...]:
    """Every symptom of the guide."""
    found = []
    for fields in _read("troubles.toml")["trouble"]:
        steps = tuple(Step(**_with_tuples(step)) for step in fields.pop("step"))
        found.append(Trouble(steps=steps, **_with_tuples(fields)))
    return tuple(found)


def find_topics(query: str) -> list[Topic]:
    """The topics that answer a query best; several if they answer it equally well, none if none has half of its words."""
    return best_matches(query, topics(), lambda topic: (topic.name, topic.title, topic.words))


def find_troubles(query: str) -> list[Trouble]:
    """The symptoms that a description, or a part of an error message, fits best."""
    return best_matches(query, troubles(), lambda trouble: (trouble.name, trouble.title, trouble.words))


def topic_named(asked: str) -> Topic:
    """The one topic of a name, or of words that fit one alone. Raises InvalidInput."""
    found = find_topics(asked)
    if len(found) == 1:
        return found[0]
    names = [topic.name for topic in topics()]
    near = did_you_mean(asked, [topic.name for topic in found] or names)
    raise InvalidInput(
        f"the guide has no topic '{asked[:40]}'" if not found else f"'{asked[:40]}' fits several topics of the guide",
        hint=f"{near} the topics are {', '.join(names)}".strip(),
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text("utf-8"))


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples, and texts without the ends of lines that only fold them in the file."""
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return {name: " ".join(value.split()) if isinstance(value, str) else value for name, value in plain.items()}
