"""Facts about a model in memory that are found out once: whether it is a chain, which linear layers read which norms."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Facts:
    """Values by key. All views of one model share them, so a key names the part of the model that its value is about."""

    def __init__(self) -> None:
        self._values: dict[Hashable, object] = {}

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """The value of `key`, which `find()` computes at the first call. A key has values of one type."""
        if key not in self._values:
            self._values[key] = find()
        return cast(T, self._values[key])

    def set(self, key: Hashable, value: object) -> None:
        """What has turned out since to be the value of `key`."""
        self._values[key] = value
