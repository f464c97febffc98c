"""Where the weights of a ranking are: how many by layer and component. No Textual in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cwa_engine.records.places import Places
from cwa_engine.rows import ControlDraw
from cwa_tui.tables.ranking import RankingRows


def places_of(ranking: RankingRows) -> Places:
    """The places of all weights of a ranking."""
    each = range(len(ranking))
    return Places(Counter((ranking.value(place, "layer"), ranking.value(place, "component")) for place in each))


MANY_DRAWN = 2000  # weights of a draw: those of nineteen draws take two seconds to read, and a screen waits for it


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
