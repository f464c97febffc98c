"""Where the weights of a ranking are: how many by layer and component. torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cwa_engine.rows import TopWeight

Cell = tuple[int | None, str]  # layer, None outside the decoder blocks, and component


@dataclass(frozen=True)
class Places:
    """How many weights of a ranking are in each layer and component; the model has at least `depth` layers."""

    counts: Mapping[Cell, int]
    depth: int = 0

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def largest(self) -> int:
        return max(self.counts.values(), default=0)

    @property
    def layers(self) -> list[int | None]:
        """All layers that are known of, also those without a weight; None comes first where it has any."""
        known = [layer for layer, _ in self.counts if layer is not None]
        inside: list[int | None] = list(range(max([self.depth, *(layer + 1 for layer in known)])))
        return [None, *inside] if any(layer is None for layer, _ in self.counts) else inside

    @property
    def components(self) -> list[str]:
        """Components that have a weight, those with most first."""
        return [name for name, _ in self.by_component.most_common()]

    @property
    def by_component(self) -> Counter[str]:
        return _summed((component, count) for (_, component), count in self.counts.items())

    @property
    def by_layer(self) -> Counter[int | None]:
        return _summed((layer, count) for (layer, _), count in self.counts.items())


def places_of(weights: Iterable[TopWeight], depth: int = 0) -> Places:
    """The places of these weights, in a model of `depth` layers."""
    return Places(Counter((weight.layer, weight.component) for weight in weights), depth)


K = TypeVar("K")


def _summed(pairs: Iterable[tuple[K, int]]) -> Counter[K]:
    total: Counter[K] = Counter()
    for key, count in pairs:
        total[key] += count
    return total
