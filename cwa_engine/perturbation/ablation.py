"""Exact ablation: which weights cost most when each alone is zeroed, and the smallest set that breaks the model.

Candidates race (successive halving, Karnin et al. 2013, with a rule that says how many go on). All are measured on a few
texts, drawn at random; those that will not be among the top k are dropped, the others go on to twice as many texts, until
all texts are measured. What a candidate does in all texts is foretold by its mean so far, with an error of Student's t of
three degrees of freedom for the texts not yet seen; its standard deviation, by its mean, is not believed to be smaller than
that of nine in ten of the candidates ahead. A candidate's chance is the share of a thousand draws in which it is among the
top k. In all rounds together those are dropped whose chances add up to at most 1 %: the true top k are kept with a
probability of 99 %.

A weight of the token embedding does most in texts in which its token occurs. Those and the others are two kinds of texts;
of each a share is measured, and each is foretold by itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.errors import RunFailed
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.events import PREVIEW_ROWS, Emit, Note, Progress, TopK, ignore
from cwa_engine.models.loading import LoadedModel
from cwa_engine.perturbation.controls import critical_set
from cwa_engine.perturbation.copies import Zeroed
from cwa_engine.perturbation.kinds import PERTURBATIONS
from cwa_engine.perturbation.measurement import MeasurementContext, measure
from cwa_engine.perturbation.patch import patched
from cwa_engine.perturbation.single_zeros import SingleZeros
from cwa_engine.perturbation.treatments import ZERO
from cwa_engine.result import (
    Ablation,
    AblationCost,
    AblationRound,
    CriticalSet,
    CriticalSetStep,
    Ranking,
    TopWeight,
    cost_sentence,
    exp,
    to_plain,
)
from cwa_engine.sensitivity.metrics import ABLATION
from cwa_engine.statistics import Array, paired_delta

LOSS = 0.01  # of one of the top k, at most, in all rounds together
DRAWS = 1000
FREEDOM = 3  # of Student's t: heavy tails, for the first rounds see few texts
FIRST_TEXTS = 6
SPREAD = 0.9  # quantile of the relative spread of the candidates ahead that is taken for all
POOL = 50  # of the most harmful single weights, from which a critical set is put together
TOLERANCE = 1e-3  # of the NLL: how far a weight that counts as zero may be from one that was written as zero

Report = Callable[[int, int], None]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Race:
    """What the candidates cost. `change` is that of the NLL sum of each text, NaN where it was not measured."""

    change: Array  # [candidates, texts]
    finalists: list[int]  # candidates measured on all texts, the most harmful first
    rounds: tuple[AblationRound, ...]


@dataclass(frozen=True)
class Ablated:
    """The exact ranking of the candidates."""

    ranking: Ranking
    finalists: tuple[TopWeight, ...]  # all that were measured on all texts, the most harmful first
    rows: tuple[Ablation, ...]
    cost: AblationCost


def ablate(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    candidates: Sequence[TopWeight],
    k: int,
    seed: int,
    emit: Emit = ignore,
) -> Ablated:
    """Rank candidates by what zeroing each alone does to the loss of these texts.

    The best k are measured again with the weight written as zero: theirs are the figures that are published. Raises
    RunFailed where these differ from those of the race.
    """
    reached = [0, 1]

    def tick() -> None:
        emit(Progress("ablate", reached[0], reached[1], "text"))

    def report(done: int, total: int) -> None:
        reached[:] = done, total
        tick()

    zeros = SingleZeros(loaded, sequences, tick)
    weights = [_zeroed(loaded, unit) for unit in candidates]
    raced = race(zeros, weights, k, seed, report)
    change = raced.change.copy()
    for place in raced.finalists[:k]:
        change[place] = _checked(zeros, weights[place], candidates[place].target, raced.change[place])
    rows = _rows(zeros, candidates, change, raced)
    by_target = {unit.target: unit for unit in candidates}
    finalists = tuple(
        replace(by_target[row.target], rank=row.place, score=row.delta_nll, stable=None) for row in rows if row.exact
    )
    ranking = Ranking(ABLATION, finalists[:k], parameters=tuple(loaded.anatomy.parameters))
    cost = AblationCost(len(candidates), len(zeros.texts), raced.rounds, zeros.spent, len(candidates) + 1.0)
    emit(Note(cost_sentence(to_plain(cost))))
    emit(TopK(ABLATION, False, ranking.weights[:PREVIEW_ROWS]))
    return Ablated(ranking, finalists, rows, cost)


def zeroed_together(loaded: LoadedModel, units: Sequence[TopWeight]) -> AbstractContextManager[object]:
    """These weights are zero meanwhile."""
    chosen = critical_set(units, loaded.anatomy.parameters)
    return patched(loaded.model, chosen, PERTURBATIONS["zero"], offsets=loaded.anatomy.offsets)


def _zeroed(loaded: LoadedModel, unit: TopWeight) -> Zeroed:
    return Zeroed(loaded.anatomy.parameters[unit.parameter], unit.flat_index)


def _checked(zeros: SingleZeros, weight: Zeroed, target: str, raced: Array) -> Array:
    """The changes of the NLL sums by the weight itself written as zero. [texts]"""
    written = zeros.really_zeroed(weight) - zeros.intact
    written = np.where(np.isnan(written), np.inf, written)
    if not np.allclose(written, raced, rtol=0, atol=TOLERANCE * float(np.max(zeros.intact))):
        raise RunFailed(
            f"zeroing {target} in a copy of a batch changes the loss otherwise than writing a zero does",
            hint="please report this with the model's name; the other metrics do not depend on it",
        )
    return written


def _rows(zeros: SingleZeros, candidates: Sequence[TopWeight], change: Array, raced: Race) -> tuple[Ablation, ...]:
    """The candidates, those measured on all texts first."""
    total, tokens = change.sum(1), zeros.tokens
    finalists = sorted(raced.finalists, key=lambda place: -total[place])
    dropped = sorted(set(range(len(candidates))) - set(finalists), key=lambda p: -_mean(change[p], tokens))
    found = []
    for number, place in enumerate([*finalists, *dropped], start=1):
        seen = ~np.isnan(change[place])
        intact = np.zeros(int(seen.sum()))
        delta = paired_delta(change[place][seen], intact, tokens[seen])
        found.append(
            Ablation(number, candidates[place].target, *delta, len(intact), int(tokens[seen].sum()), bool(seen.all()))
        )
    return tuple(found)


def _mean(change: Array, tokens: Array) -> float:
    seen = ~np.isnan(change)
    return float(change[seen].sum() / tokens[seen].sum())


def find_critical_set(
    context: MeasurementContext,
    sequences: Sequence[TokenSequence],
    finalists: Sequence[TopWeight],
    factor: float,
    emit: Emit,
) -> CriticalSet:
    """The smallest set found by the scoring texts, with what it does to the evaluation texts."""
    loaded, pool = context.loaded, finalists[:POOL]
    found = smallest_set(loaded, sequences, pool, factor, context.spec.seed, emit)
    steps = []
    for size, (unit, ratio) in enumerate(found, start=1):
        weights = critical_set([unit for unit, _ in found[:size]], loaded.anatomy.parameters)
        delta = context.delta(measure(context, weights, ZERO).evaluation)
        steps.append(CriticalSetStep(size, unit.target, ratio, *delta, exp(delta[0])))
    reached = bool(found) and found[-1][1] >= factor
    few = f"{len(found)} weight{'s' * (len(found) != 1)}"
    said = (
        f"{few} multiply perplexity by {found[-1][1]:,.4g} on the scoring texts" if found else "no weight was measured"
    )
    emit(Note(said if reached else f"{said}: less than {factor:g}, and no weight is left to add"))
    return CriticalSet(factor, reached, tuple(steps))


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
            raced = race(zeros, [_zeroed(loaded, unit) for unit in left], 1, seed)
        best = raced.finalists[0]
        chosen.append(left[best])
        ratios.append(_ratio(zeros.intact + raced.change[best], intact))
        emit(Note(f"{chosen[-1].target} makes it x{ratios[-1]:,.4g}, {len(chosen)} weights together"))
    return _without_needless(loaded, sequences, chosen, factor, intact)


def _without_needless(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], chosen: list[TopWeight], factor: float, intact: SingleZeros
) -> list[tuple[TopWeight, float]]:
    def ratio(units: Sequence[TopWeight]) -> float:
        with zeroed_together(loaded, units):
            return _ratio(evaluate(loaded, intact.texts, 1).nll_sums, intact)

    if ratio(chosen) >= factor:
        for unit in list(chosen):
            rest = [other for other in chosen if other is not unit]
            if rest and ratio(rest) >= factor:
                chosen = rest
    return [(unit, ratio(chosen[: size + 1])) for size, unit in enumerate(chosen)]


def _ratio(nll_sums: Array, intact: SingleZeros) -> float:
    change = float((nll_sums - intact.intact).sum() / intact.tokens.sum())
    return math.inf if math.isnan(change) else exp(change)


def propose(rankings: Sequence[Ranking], candidates: int) -> list[TopWeight]:
    """In turns, each ranking names its best weight that none has named yet; one that is given twice has two turns a round.

    By place instead, rankings that agree would together name one weight where others name one each.
    """
    named: dict[str, TopWeight] = {}
    left = {ranking.metric: iter(ranking.weights) for ranking in rankings}
    turns = deque(ranking.metric for ranking in rankings)
    while turns and len(named) < candidates:
        metric = turns.popleft()
        fresh = next((unit for unit in left[metric] if unit.target not in named), None)
        if fresh:
            named[fresh.target] = fresh
            turns.append(metric)
    return list(named.values())


def race(
    zeros: SingleZeros, weights: Sequence[Zeroed], k: int, seed: int, report: Report = lambda done, total: None
) -> Race:
    """Measure candidates until those that may be among the k most harmful are measured on all texts."""
    rng = np.random.default_rng(seed)
    texts = len(zeros.texts)
    order = rng.permutation(texts)
    reached = np.array([[zeros.reaches(weight, number) for number in range(texts)] for weight in weights])
    change = np.full(reached.shape, np.nan)
    alive = np.arange(len(weights))
    goals = _goals(texts)
    rounds = []
    for number, goal in enumerate(goals, start=1):
        wanted = np.isnan(change) & _first_of_each_kind(reached, order, goal / texts)
        for done, text in enumerate(order.tolist(), start=1):
            some = alive[wanted[alive, text]]
            measured = zeros.nll([weights[place] for place in some], text) - zeros.intact[text] if len(some) else 0.0
            change[some, text] = np.where(np.isnan(measured), np.inf, measured)
            report((number - 1) * texts + done, len(goals) * texts)
        rounds.append(AblationRound(goal, len(alive)))
        if goal < texts and len(alive) > k:
            chance = chances(change[alive], reached[alive], k, rng)
            alive = alive[survivors(chance, k, LOSS / (len(goals) - 1))]
    totals = change.sum(1)
    return Race(change, sorted(alive.tolist(), key=lambda place: -totals[place]), tuple(rounds))


def _goals(texts: int) -> list[int]:
    """How many texts the candidates of each round are measured on, those of the rounds before included."""
    goals = [min(FIRST_TEXTS, texts)]
    while goals[-1] < texts:
        goals.append(min(2 * goals[-1], texts))
    return goals


def _first_of_each_kind(reached: Flags, order: Indices, share: float) -> Flags:
    """Of the texts that a candidate reaches, and of those it does not, this share, one at least, the first in `order`."""
    wanted = np.zeros_like(reached)
    for kind in (reached, ~reached):
        place = kind[:, order].cumsum(1)[:, np.argsort(order)]  # of each text among those of its kind
        wanted |= kind & (place <= np.maximum(1, np.ceil(share * kind.sum(1, keepdims=True))))
    return wanted


def chances(change: Array, reached: Flags, k: int, rng: np.random.Generator) -> Array:
    """How likely each candidate is among the k largest totals, by what is measured so far. [candidates]

    `change` [candidates, texts] is NaN where it is not; `reached` [candidates, texts] are the two kinds of texts.
    """
    candidates = len(change)
    if k >= candidates:
        return np.ones(candidates)
    spread, total, error = None, np.zeros(candidates), np.zeros(candidates)
    for kind in (reached, ~reached):
        sizes, seen = kind.sum(1), (kind & ~np.isnan(change)).sum(1)
        mean, deviation = _moments(np.where(kind, change, np.nan), seen)
        if spread is None:
            spread = _relative_spread(mean, deviation, k)
        unseen = sizes - seen
        with np.errstate(divide="ignore", invalid="ignore"):
            off = np.maximum(deviation, spread * np.abs(mean)) * np.sqrt(unseen + unseen**2 / seen)
        total += np.where(sizes > 0, sizes * mean, 0)
        error += np.where(unseen > 0, off, 0) ** 2
    draws = total[:, None] + np.nan_to_num(np.sqrt(error))[:, None] * rng.standard_t(FREEDOM, (candidates, DRAWS))
    least = np.partition(draws, candidates - k, axis=0)[candidates - k]
    return np.asarray((draws >= least).mean(1))


def _moments(change: Array, seen: Indices) -> tuple[Array, Array]:
    """Mean and standard deviation over what is measured; 0 for what has none. [candidates] each"""
    values, counted = np.nan_to_num(change, posinf=np.inf), ~np.isnan(change)
    mean = values.sum(1) / np.maximum(seen, 1)
    with np.errstate(invalid="ignore"):
        squares = np.where(counted, values - mean[:, None], 0) ** 2
    return mean, np.sqrt(np.nan_to_num(squares).sum(1) / np.maximum(seen - 1, 1))


def _relative_spread(mean: Array, deviation: Array, k: int) -> float:
    """Standard deviation over mean of the candidates that are ahead, a high quantile: some act on few texts alone."""
    ahead = np.argsort(-mean)[: 2 * k]
    ahead = ahead[np.isfinite(mean[ahead]) & (mean[ahead] > 0)]
    return float(np.quantile(deviation[ahead] / mean[ahead], SPREAD)) if len(ahead) else 1.0


def survivors(chance: Array, k: int, allowed: float) -> Indices:
    """All but the candidates of the least chances, as long as these add up to at most `allowed`; k at least."""
    order = np.argsort(chance, kind="stable")
    dropped = int((np.cumsum(chance[order]) <= allowed).sum())
    return np.sort(order[max(0, min(dropped, len(order) - k)) :])
