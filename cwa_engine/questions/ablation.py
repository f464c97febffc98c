"""Exact ablation: which weights cost most when each alone is zeroed, and the smallest set that breaks the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cwa_engine.base.errors import RunFailed
from cwa_engine.base.events import PREVIEW_ROWS, Emit, Note, Progress, TopK, ignore
from cwa_engine.base.statistics import Array, paired_delta
from cwa_engine.damage.copies import Zeroed
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import ABLATION
from cwa_engine.models.loading import LoadedModel
from cwa_engine.questions.race import Race, race
from cwa_engine.questions.single_zeros import SingleZeros, zeroed
from cwa_engine.rows import (
    Ablation,
    AblationCost,
    Ranking,
    TopWeight,
    cost_sentence,
    to_plain,
)

TOLERANCE = 1e-3  # of the NLL: how far a weight that counts as zero may be from one that was written as zero


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
    weights = [zeroed(loaded, unit) for unit in candidates]
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
