"""The smallest set of weights found that multiplies perplexity by a factor when all are zeroed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cwa_engine.base.events import Emit, Note, Progress, ignore
from cwa_engine.base.statistics import Array
from cwa_engine.damage.cases import zeroed_together
from cwa_engine.damage.race import race
from cwa_engine.damage.single_zeros import SingleZeros, zeroed
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import TopWeight, exp


def smallest_set(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    pool: Sequence[TopWeight],
    factor: float,
    seed: int,
    emit: Emit = ignore,
) -> list[tuple[TopWeight, float]]:
    """A set of few weights that multiplies perplexity by `factor` when all are zeroed, and the ratio after each.

    Greedy: every step adds the weight of `pool` that then costs most, by a race for one. A weight without which the set
    still reaches the factor is left out at the end. Where the pool is not enough, all of it is given.
    """
    chosen: list[TopWeight] = []
    ratios: list[float] = []

    def tick() -> None:
        emit(Progress("critical set", len(chosen), len(pool), "weight"))

    intact = SingleZeros(loaded, sequences, tick)
    while len(chosen) < len(pool) and (not ratios or ratios[-1] < factor):
        left = [unit for unit in pool if unit not in chosen]
        with zeroed_together(loaded, chosen):
            zeros = SingleZeros(loaded, sequences, tick)
            raced = race(zeros, [zeroed(loaded, unit) for unit in left], 1, seed)
        best = raced.finalists[0]
        chosen.append(left[best])
        ratios.append(_ratio(zeros.intact + raced.change[best], intact))
        emit(Note(f"{chosen[-1].target} makes it x{ratios[-1]:,.4g}, {len(chosen)} weights together"))
    return _without_needless(loaded, chosen, factor, intact, tick)


def _without_needless(
    loaded: LoadedModel, chosen: list[TopWeight], factor: float, intact: SingleZeros, tick: Callable[[], None]
) -> list[tuple[TopWeight, float]]:
    def ratio(units: Sequence[TopWeight]) -> float:
        with zeroed_together(loaded, units):
            return _ratio(evaluate(loaded, intact.texts, 1, lambda done: tick()).nll_sums, intact)

    if ratio(chosen) >= factor:
        for unit in list(chosen):
            rest = [other for other in chosen if other is not unit]
            if rest and ratio(rest) >= factor:
                chosen = rest
    return [(unit, ratio(chosen[: size + 1])) for size, unit in enumerate(chosen)]


def _ratio(nll_sums: Array, intact: SingleZeros) -> float:
    change = float((nll_sums - intact.intact).sum() / intact.tokens.sum())
    return math.inf if math.isnan(change) else exp(change)
