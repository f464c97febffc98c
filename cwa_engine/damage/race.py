"""A race of candidates: those that may be among the most harmful are measured on more texts, the others are dropped.

Successive halving (Karnin et al. 2013, with a rule that says how many go on). All are measured on a few
texts, drawn at random; those that will not be among the top k are dropped, the others go on to twice as many texts, until
all texts are measured. What a candidate does in all texts is estimated by its mean so far, with an error of Student's t of
three degrees of freedom for the texts not yet seen; its standard deviation, by its mean, is not believed to be smaller than
that of nine in ten of the candidates ahead. A candidate's chance is the share of a thousand draws in which it is among the
top k. In all rounds together those are dropped whose chances add up to at most 1 %: the true top k are kept with a
probability of 99 %.

A weight of the token embedding does most in texts in which its token occurs. Those and the others are two kinds of texts;
of each a share is measured, and each is estimated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.statistics import Array
from cwa_engine.damage.copies import Zeroed
from cwa_engine.damage.single_zeros import SingleZeros

LOSS = 0.01  # probability to drop one of the top k, at most, in all rounds together
DRAWS = 1000
FREEDOM = 3  # of Student's t: heavy tails, for the first rounds see few texts
FIRST_TEXTS = 6
SPREAD = 0.9  # quantile of the relative spread of the candidates ahead that is taken for all

Report = Callable[[int, int], None]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """How many candidates were measured on how many texts, those of the rounds before included.

    A weight of the token embedding may have been measured on one text more: one that has its token, and one that has not.
    """

    texts: int
    candidates: int


@dataclass(frozen=True)
class Race:
    """What the candidates cost. `change` is that of the NLL sum of each text, NaN where it was not measured."""

    change: Array  # [candidates, texts]
    finalists: list[int]  # candidates measured on all texts, the most harmful first
    rounds: tuple[Round, ...]


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
        rounds.append(Round(goal, len(alive)))
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
