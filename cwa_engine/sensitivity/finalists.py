"""The first places of a ranking by an estimated Hessian diagonal, computed exactly and ranked again.

The largest of many noisy estimates are those with the largest noise. So the first places are finalists only: each one's
diagonal entry is computed by an exact Hessian-vector product, and they are ranked by that.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.events import Note, Progress
from cwa_engine.result import Ranking, TopWeight
from cwa_engine.run import Run
from cwa_engine.sensitivity.hessian import exact_diagonal
from cwa_engine.sensitivity.metrics import METRICS, Needs
from cwa_engine.sensitivity.ranking import group_of
from cwa_engine.spec import RunSpec

PER_PLACE = 2  # finalists for each place asked for,
MOST = 100  # but no more in all groups together, or one of each: a product takes a fifth of the time of a probe


def has_finalists(metric: str, structure: str) -> bool:
    """Whether a metric's first places are computed again: single weights by estimates of the Hessian's diagonal."""
    return Needs.HESSIAN in METRICS[metric].needs and structure == "weight"


def depth_of(metric: str, spec: RunSpec) -> int:
    """How many places a ranking must have for the places asked for and for finalists."""
    k = spec.largest_k
    return max(k, min(PER_PLACE * k, MOST)) if has_finalists(metric, spec.structure) else k


def with_exact_scores(
    run: Run, sequences: Sequence[TokenSequence], ranking: Ranking, stage: str = "exact"
) -> Ranking:
    """The ranking with its finalists first, by their exact scores, whose standard error is 0; the others as they were."""
    if not has_finalists(ranking.metric, ranking.structure):
        return ranking
    parameters = run.loaded.anatomy.parameters
    groups = len({group_of(parameters[row.parameter], run.spec.scope) for row in ranking.weights})
    places = min(PER_PLACE * run.spec.largest_k, max(1, MOST // groups))
    finalists = ranking.top(places)
    if stage == "exact":
        said = f"{ranking.metric}: the first {len(finalists)} places are computed exactly, each by a Hessian-vector product"
        after = f"later places are estimates by {run.spec.probes} probes"
        run.emit(Note(f"{said} for each of {len(sequences)} texts; {after}"))

    def report(done: int) -> None:
        run.emit(Progress(stage, done, len(sequences), "sequence"))

    weights = [(row.parameter, row.flat_index) for row in finalists]
    report(0)
    exact = run.loss_scale.run(
        lambda: exact_diagonal(run.loaded, sequences, weights, run.loss_scale.of(sequences), report)
    )

    def group(row: TopWeight) -> str:
        return str(group_of(parameters[row.parameter], run.spec.scope))

    scored = [
        dataclasses.replace(row, score=abs(value), standard_error=0.0)
        for row, value in zip(finalists, exact, strict=True)
    ]
    scored.sort(key=lambda row: (group(row), -(row.score or 0.0)))  # among equal ones the earlier place stays first
    placed = [
        dataclasses.replace(row, rank=place)
        for _, rows in itertools.groupby(scored, key=group)
        for place, row in enumerate(rows, start=1)
    ]
    placed.sort(key=lambda row: (row.rank, -(row.score or 0.0)))
    return dataclasses.replace(ranking, weights=(*placed, *ranking.weights[len(placed) :]))
