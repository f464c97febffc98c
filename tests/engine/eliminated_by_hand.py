"""The rule of docs/method.md by which draws of controls are measured, once more and by nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

Change = Callable[[Any, Sequence[int]], float]  # (entrant, numbers of texts) -> change of the loss there


def parts_of(texts: int) -> list[list[int]]:
    """The texts of the three rounds, counted from 1: eight evenly spaced, of these every second, of those every second."""
    eight = [int(place) + 1 for place in np.round(np.linspace(0, texts - 1, 8))]
    return [eight[3::4], eight[1::2], eight]


def by_hand(
    change: Change,
    critical: Hashable,
    draws: Sequence[Hashable],
    rounds: Sequence[Sequence[int]],
    tokens: Mapping[int, float] | None = None,
) -> tuple[list[Hashable], dict[Hashable, int]]:
    """(the entrants in the order in which they come out, on how many texts each was measured)

    `tokens` are those of each text; without them all have as many.
    """
    where = rounds[0]
    if len(rounds) == 1:
        moved = {entrant: abs(change(entrant, where)) for entrant in (critical, *draws)}
    else:  # few texts: those of single texts, whatever their sign
        share = {text: tokens[text] / sum(tokens[n] for n in where) if tokens else 1 / len(where) for text in where}
        moved = {
            entrant: math.sqrt(sum(share[text] * change(entrant, [text]) ** 2 for text in where))
            for entrant in (critical, *draws)
        }
    moved = {entrant: size if math.isfinite(size) else math.inf for entrant, size in moved.items()}
    ranked = sorted((*draws, critical), key=lambda entrant: moved[entrant], reverse=True)  # stable: ties favour draws
    texts = dict.fromkeys(ranked, len(where))
    if len(rounds) == 1:
        return ranked, texts
    stay = [e for place, e in enumerate(ranked) if place < 4 or 10 * moved[e] >= moved[ranked[0]]]
    going = [draw for draw in draws if draw in stay]
    if critical in stay:
        ahead, later = by_hand(change, critical, going, rounds[1:], tokens)
    else:  # the first of those that stay takes its part in the ranking; there are only draws, so ties do not matter
        ahead, later = by_hand(change, going[-1], going[:-1], rounds[1:], tokens)
    return [*ahead, *(e for e in ranked if e not in stay)], {**texts, **later}
