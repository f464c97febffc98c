"""Whether several models put the same things in the same order. numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.base.statistics import Array, mean_ranks

REDRAWS = 1999


@dataclass(frozen=True, slots=True)
class Concordance:
    """Kendall's W of several orders, from 0 to 1, and the share of random orders that agree at least as much."""

    w: float
    p_value: float

    @property
    def is_clear(self) -> bool:
        return self.p_value <= LEVEL

    def __str__(self) -> str:
        return f"Kendall's W {self.w:.2f}, {p_text(self.p_value)}"


def least_blocks(things: int) -> int:
    """How many models must agree on the order of so many things for that to be less likely than `LEVEL`."""
    return 1 + math.ceil(math.log(1 / LEVEL) / math.log(math.factorial(things)) - 1e-9) if things > 1 else 0


def concordance(values: Array, seed: int = 0) -> Concordance | None:
    """How far the rows agree on the order of the columns. [models, things]  None where even full agreement would be chance.

    The null hypothesis is that every row is in an order of its own, all of which are equally likely (Friedman 1937); for two
    things the test is a sign test. p is from `REDRAWS` random orders.
    """
    blocks, things = values.shape
    if things < 2 or blocks < least_blocks(things):
        return None
    ranks = np.array([mean_ranks(row) for row in values])
    rng = np.random.default_rng(seed)
    drawn = rng.permuted(np.broadcast_to(ranks, (REDRAWS, *ranks.shape)), axis=2)
    seen = _spread(ranks)
    as_far = int((_spread(drawn) >= seen * (1 - 1e-12)).sum())
    most = blocks**2 * (things**3 - things) / 12
    return Concordance(float(seen / most), (1 + as_far) / (1 + REDRAWS))


def _spread(ranks: Array) -> Array:
    """Sum of squares of the rank sums about their mean."""
    sums = ranks.sum(axis=-2)
    spread: Array = ((sums - sums.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    return spread
