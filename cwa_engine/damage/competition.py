"""A critical set and the draws of one control, measured by the rule of `elimination.py`. torch-free.

A run measures what the rule asks for, a verification looks it up in the files of a run; both go through `compete`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cwa_engine.base.p_values import LEVEL
from cwa_engine.base.statistics import widened
from cwa_engine.damage.elimination import (
    CRITICAL,
    LEAST_DRAWS,
    LOOKS_HOLD,
    Standing,
    eliminate,
    looks_of,
    rounds_of,
    texts_until_clear,
)
from cwa_engine.damage.measured import Measured, Reference
from cwa_engine.methods.controls import CONTROLS

OnTexts = Callable[[int, int], Measured]  # (draw, texts) -> its losses, on the first so many texts at least


def compete(reference: Reference, control: str, critical: Measured, draws: int, measured: OnTexts) -> Standing:
    """Who comes out where, and on how many texts each draw is measured.

    `critical` is measured on all texts. Draws are counted from 0, and `measured` is asked in the order of the rule.
    """
    texts = len(reference.intact.tokens)

    rounds = rounds_of(texts)

    def size(entrant: int, count: int) -> float:
        losses = critical if entrant == CRITICAL else measured(entrant - 1, count)
        return reference.size(losses, count) if count == rounds[-1] else reference.spread(losses, count)

    standing = eliminate(draws, rounds, size)
    looks = looks_of(texts)
    if not looks or settled(control, draws, standing.ahead):
        return standing
    first = standing.first_draw

    found = texts_until_clear(
        reference.size(critical, texts),
        looks,
        lambda count: interval_of(reference, measured(first, count), count, len(looks)),
    )
    measured(first, found)
    on_texts = list(standing.texts)
    on_texts[first + 1] = found
    return dataclasses.replace(standing, texts=tuple(on_texts))


def interval_of(reference: Reference, measured: Measured, count: int, looks: int) -> tuple[float, float]:
    """(low, high) of the change on the first so many texts; of so many looks together all hold with `LOOKS_HOLD`."""
    figure = reference.delta(measured.part(reference.first(count)))
    return widened(figure, round(looks * 0.05 / (1 - LOOKS_HOLD)))[1:]


def settled(control: str, draws: int, ahead: int) -> bool:
    """Whether p alone says that a critical set is not distinguishable."""
    return has_p(control, draws) and p_value(draws, ahead) > LEVEL


def has_p(control: str, draws: int) -> bool:
    """Whether so many draws of a control give a p-value."""
    return CONTROLS[control].is_random and draws >= LEAST_DRAWS


def p_value(draws: int, ahead: int) -> float:
    """The share of entrants that came out as far ahead as the critical set: it and the draws ahead of it."""
    return (1 + ahead) / (1 + draws)
