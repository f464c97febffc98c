"""Named entries that describe themselves. Help texts, forms, docs and error messages are made from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from cwa_engine.base.errors import InvalidInput, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name, in the order of registration."""

    def __init__(self, noun: str) -> None:
        self.noun = noun  # "metric", for error messages
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> None:
        if name in self._entries:
            raise ValueError(f"{self.noun} '{name}' is defined twice")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The entry. Raises InvalidInput for an unknown name, with similar names as the hint."""
        try:
            return self._entries[name]
        except KeyError:
            near = did_you_mean(name, self._entries)
            known = f"known: {', '.join(self._entries)}"
            raise InvalidInput(f"unknown {self.noun} '{name}'", hint=f"{near} {known}".strip()) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        return iter(self._entries.items())


def first_sentence(function: Callable[..., Any]) -> str:
    """The first sentence of a function's docstring, without its full stop."""
    return (function.__doc__ or "").split("\n")[0].split(". ")[0].rstrip(".")
