"""Where the weights of a ranking are: how many by layer and component. No Textual in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cwa_engine.rows import ControlDraw
from cwa_tui.tables.ranking import RankingRows

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


def places_of(ranking: RankingRows) -> Places:
    """The places of all weights of a ranking."""
    each = range(len(ranking))
    return Places(Counter((ranking.value(place, "layer"), ranking.value(place, "component")) for place in each))


def drawn_layers(draws: Iterable[ControlDraw], metric: str, ranking: RankingRows) -> Mapping[int | None, int]:
    """Layers of the weights that `random` drew beside a metric's critical sets: spread as all weights in view are.

    The number of the layer stands where it stands in the names of the ranking. Empty where none of these is in a layer.
    """
    inside = next((place for place in range(len(ranking)) if ranking.value(place, "layer") is not None), None)
    if inside is None:
        return {}
    parts = ranking.value(inside, "parameter").split(".")
    place = parts.index(str(ranking.value(inside, "layer")))
    found: Counter[int | None] = Counter()
    for draw in draws:
        if draw.control == "random" and draw.metric == metric:
            named = draw.target.partition("[")[0].split(".")
            is_inside = named[:place] == parts[:place] and len(named) > place and named[place].isdigit()
            found[int(named[place]) if is_inside else None] += 1
    return found


K = TypeVar("K")


def _summed(pairs: Iterable[tuple[K, int]]) -> Counter[K]:
    total: Counter[K] = Counter()
    for key, count in pairs:
        total[key] += count
    return total
