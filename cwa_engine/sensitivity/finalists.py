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

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.events import Note, Progress
from cwa_engine.perturbation.ablation import propose
from cwa_engine.result import Ranking, TopWeight
from cwa_engine.run import Run
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.hessian import exact_diagonal
from cwa_engine.sensitivity.metrics import METRICS, Metric, Needs, WeightStats
from cwa_engine.sensitivity.ranking import Ranker, group_of

if TYPE_CHECKING:
    from torch import Tensor

MOST = 100  # finalists; on SmolLM2-135M a product takes a third of the time of a probe


def _fisher(weight: Tensor, stats: WeightStats) -> Tensor:
    assert stats.token_fisher is not None
    return stats.token_fisher


_PROPOSER = Metric("token_fisher", "F", Needs.TOKEN_FISHER, "", "Names half of the finalists", _fisher)


class Rankers:
    """A ranker of each scored metric; one more names finalists where a ranking has any."""

    def __init__(self, run: Run, depth: int) -> None:
        """Each keeps at least `depth` places of a group."""
        spec = run.spec
        metrics = [METRICS[name] for name in spec.scored_metrics]
        estimated = [metric for metric in metrics if _has_finalists(metric, spec.structure)]

        def ranker(metric: Metric, k: int) -> Ranker:
            return Ranker(run.loaded, metric, k, "bottom" in spec.controls, spec.structure, spec.scope)

        self.by_metric = {m.name: ranker(m, max(depth, MOST) if m in estimated else depth) for m in metrics}
        self._proposer = ranker(_PROPOSER, MOST) if estimated else None

    def offer(self, statistics: Statistics) -> None:
        """Score the parameters that these statistics are of."""
        for ranker in (*self.by_metric.values(), *([self._proposer] if self._proposer else [])):
            ranker.offer(statistics)

    def rankings(self) -> dict[str, Ranking]:
        """By metric, and by what names finalists."""
        found = {name: ranker.ranking() for name, ranker in self.by_metric.items()}
        return found | ({_PROPOSER.name: self._proposer.ranking()} if self._proposer else {})


def have_finalists(rankings: Mapping[str, Ranking]) -> bool:
    """Whether some of these rankings are to be made exact in their first places."""
    return _PROPOSER.name in rankings


def with_exact_scores(
    run: Run, sequences: Sequence[TokenSequence], rankings: Mapping[str, Ranking], stage: str = "exact"
) -> dict[str, Ranking]:
    """The rankings of the scored metrics, estimated ones with their finalists first, by exact scores of error 0."""
    by_fisher = rankings.get(_PROPOSER.name)
    scored = {name: ranking for name, ranking in rankings.items() if ranking is not by_fisher}
    if by_fisher is None:
        return scored
    return {
        name: _exact(run, sequences, ranking, by_fisher, stage)
        if _has_finalists(METRICS[name], ranking.structure)
        else ranking
        for name, ranking in scored.items()
    }


def _has_finalists(metric: Metric, structure: str) -> bool:
    """Single weights alone: a whole row would take a product for each of its weights."""
    return Needs.HESSIAN in metric.needs and structure == "weight"


def _exact(run: Run, sequences: Sequence[TokenSequence], ranking: Ranking, by_fisher: Ranking, stage: str) -> Ranking:
    parameters = run.loaded.anatomy.parameters

    def group(row: TopWeight) -> object:
        return group_of(parameters[row.parameter], run.spec.scope)

    groups = len({group(row) for row in ranking.weights})
    finalists = propose([ranking, by_fisher], max(MOST, groups))
    if stage == "exact":
        said = f"{ranking.metric}: {len(finalists)} finalists are computed exactly, each by a Hessian-vector product"
        after = f"later places are estimates by {run.spec.probes} probes"
        run.emit(Note(f"{said} for each of {len(sequences)} texts; {after}"))
    weights = [(row.parameter, row.flat_index) for row in finalists]

    def report(done: int) -> None:
        run.emit(Progress(stage, done, len(sequences), "sequence"))

    report(0)
    exact = run.loss_scale.run(
        lambda: exact_diagonal(run.loaded, sequences, weights, run.loss_scale.of(sequences), report)
    )
    pairs = sorted(zip(finalists, exact, strict=True), key=lambda pair: -abs(pair[1]))  # equal ones keep their order
    first = [dataclasses.replace(row, score=abs(value), standard_error=0.0) for row, value in pairs]
    names = {row.target for row in first}
    by_group: dict[object, list[TopWeight]] = {}
    for row in (*first, *(row for row in ranking.weights if row.target not in names)):
        by_group.setdefault(group(row), []).append(row)
    placed = [
        dataclasses.replace(row, rank=place) for rows in by_group.values() for place, row in enumerate(rows, start=1)
    ]
    placed.sort(key=lambda row: (row.rank, -(row.score or 0.0)))
    return dataclasses.replace(ranking, weights=tuple(placed))
