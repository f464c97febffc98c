"""The first places of a ranking by an estimated Hessian diagonal, computed exactly and ranked again.

The largest of many noisy estimates are those with the largest noise. So some weights are finalists only: each one's
diagonal entry is computed by an exact Hessian-vector product, and they are ranked by that. Half of them have the largest
estimates. The other half have the largest token-level Fisher diagonal, which is near the Hessian's as far as the model
predicts its texts well, and errs by a share of itself where an estimate errs by the size of a row of H.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cwa_engine.base.events import Note, Progress
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import Metric, Needs, WeightStats
from cwa_engine.rows import Ranking, TopWeight
from cwa_engine.run import RunContext
from cwa_engine.sensitivity.candidates import propose
from cwa_engine.sensitivity.hessian import exact_diagonal
from cwa_engine.sensitivity.ranking import group_of

if TYPE_CHECKING:
    from torch import Tensor

MOST = 100  # finalists; on SmolLM2-135M a product takes a third of the time of a probe


def _fisher(weight: Tensor, stats: WeightStats) -> Tensor:
    assert stats.token_fisher is not None
    return stats.token_fisher


PROPOSER = Metric("token_fisher", "F", Needs.TOKEN_FISHER, "", "Names half of the finalists", _fisher)


def has_finalists(metric: Metric, structure: str) -> bool:
    """Single weights alone: a whole row would take a product for each of its weights."""
    return Needs.HESSIAN in metric.needs and structure == "weight"


def with_exact_scores(
    run: RunContext,
    sequences: Sequence[TokenSequence],
    rankings: Mapping[str, Ranking],
    proposals: Mapping[str, Ranking],
    stage: str = "exact",
) -> dict[str, Ranking]:
    """The rankings, those with `proposals` of F beside them with their finalists first, by exact scores of error 0."""
    finalists = {label: _finalists(run, rankings[label], by_fisher) for label, by_fisher in proposals.items()}
    weights = list(dict.fromkeys((row.parameter, row.flat_index) for rows in finalists.values() for row in rows))
    if not weights:
        return dict(rankings)
    if stage == "exact":
        said = (
            f"{', '.join(finalists)}: {len(weights)} finalists are computed exactly, each by a Hessian-vector product"
        )
        after = f"later places are estimates by {run.spec.probes} probes"
        run.emit(Note(f"{said} for each of {len(sequences)} texts; {after}"))

    def report(done: int) -> None:
        run.emit(Progress(stage, done, len(sequences), "sequence"))

    report(0)
    entries = run.loss_scale.run(
        lambda: exact_diagonal(run.loaded, sequences, weights, run.loss_scale.of(sequences), report)
    )
    exact = dict(zip(weights, entries, strict=True))
    placed = {label: _placed(run, rankings[label], rows, exact) for label, rows in finalists.items()}
    return {**rankings, **placed}


def _finalists(run: RunContext, ranking: Ranking, by_fisher: Ranking) -> list[TopWeight]:
    groups = len({_group(run, row) for row in ranking.weights})
    return propose([ranking, by_fisher], max(MOST, groups))


def _group(run: RunContext, row: TopWeight) -> object:
    return group_of(run.loaded.anatomy.parameters[row.parameter], run.spec.scope)


def _placed(
    run: RunContext, ranking: Ranking, finalists: Sequence[TopWeight], exact: Mapping[tuple[str, int], float]
) -> Ranking:
    """The ranking with the finalists first in each group, by their exact scores."""
    scored = [
        dataclasses.replace(row, score=abs(exact[row.parameter, row.flat_index]), standard_error=0.0)
        for row in finalists
    ]
    first = sorted(scored, key=lambda row: -(row.score or 0.0))  # equal ones keep their order
    names = {row.target for row in first}
    by_group: dict[object, list[TopWeight]] = {}
    for row in (*first, *(row for row in ranking.weights if row.target not in names)):
        by_group.setdefault(_group(run, row), []).append(row)
    placed = [
        dataclasses.replace(row, rank=place) for rows in by_group.values() for place, row in enumerate(rows, start=1)
    ]
    placed.sort(key=lambda row: (row.rank, -(row.score or 0.0)))
    return dataclasses.replace(ranking, weights=tuple(placed))
