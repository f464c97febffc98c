"""The place of one weight among all weights, by many metrics at once, without keeping or sorting any scores.

The scores pass by as they are made, of all weights at once or of one block after the other; those larger than the weight's
own are counted. Where scores pass before the weight's own is known, they are made a second time, and counted then. Both
passes do the same arithmetic in the same order; should the weight not meet its own score again, no rank is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.events import Progress
from cwa_engine.data.corpus import split
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import METRICS, Metric, Needs
from cwa_engine.models.anatomy import Parameter
from cwa_engine.run import RunContext
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.ranking import rankable, scores_at, unit_scores
from cwa_engine.sensitivity.scoring import score
from cwa_engine.sensitivity.views import matrices_in_blocks
from cwa_engine.weight_rows import MetricRank
from cwa_engine.weights.examined import ExaminedWeight

STAGE = "score"


def metric_ranks(run: RunContext, sequences: Sequence[TokenSequence], weight: ExaminedWeight) -> tuple[MetricRank, ...]:
    """The rank of a weight by every metric of the spec, over the scoring texts. The scores are those of a run."""
    parts = split(sequences) if run.halves else (sequences,)
    counts = score(run, parts, lambda: _RankCounts(run, weight, {}), STAGE)
    if counts.missed:
        own = counts.own
        counts = score(run, parts, lambda: _RankCounts(run, weight, own), STAGE)
    return tuple(counts.rank(METRICS[name]) for name in run.spec.scored_metrics)


@dataclass
class _Counts:
    """Of the scores of one metric."""

    larger: int = 0
    equal: int = 0  # the weight's own among them
    all: int = 0

    def add(self, other: _Counts) -> None:
        self.larger += other.larger
        self.equal += other.equal
        self.all += other.all


class _RankCounts:
    """Counts scores that are larger than the weight's own. `own` are its scores by metric, as far as they are known."""

    def __init__(self, run: RunContext, weight: ExaminedWeight, own: dict[str, float]) -> None:
        self._run, self._weight = run, weight
        self._matrices = frozenset(matrices_in_blocks(run.loaded.anatomy))
        self._everything = {name: _Counts() for name in run.spec.scored_metrics}
        self._in_matrices = {name: _Counts() for name in run.spec.scored_metrics}
        self._not_finite: dict[str, str] = {}  # metric -> parameter
        self._done = 0
        self._too_early: set[str] = set()  # metrics of which scores passed before the weight's own was known
        self.own = dict(own)

    @property
    def missed(self) -> bool:
        """Whether scores have to pass again, to be counted."""
        return not self._too_early.isdisjoint(self.own)

    def offer(self, statistics: Statistics, part: int | None = None) -> None:
        if part is not None:  # the halves of the texts, each by itself
            return
        for name in self._everything:
            self._find_own(METRICS[name], statistics)
            for parameter in rankable(self._run.loaded, statistics, METRICS[name], "weight"):
                self._count(METRICS[name], statistics, parameter)

    def _find_own(self, metric: Metric, statistics: Statistics) -> None:
        at = self._weight
        found = {} if metric.name in self.own else scores_at(self._run.loaded, statistics, metric, "weight", at.alone)
        if at.parameter.name in found:
            self.own[metric.name] = float(found[at.parameter.name][0])

    def _count(self, metric: Metric, statistics: Statistics, parameter: Parameter) -> None:
        own = self.own.get(metric.name)
        counts = _Counts(all=parameter.numel)
        if own is None:  # so far, or for good where the metric does not rank this weight
            self._too_early.add(metric.name)
        else:
            for _, scores in unit_scores(self._run.loaded, parameter, statistics[parameter.name], metric, "weight"):
                counts.larger += int(torch.count_nonzero(scores > own))
                counts.equal += int(torch.count_nonzero(scores == own))
                if not math.isfinite(float(scores.max())):  # NaN propagates through max
                    self._not_finite.setdefault(metric.name, parameter.name)
        self._everything[metric.name].add(counts)
        if parameter.name in self._matrices:
            self._in_matrices[metric.name].add(counts)
        self._tell(statistics)

    def _tell(self, statistics: Statistics) -> None:
        """How many tensors are counted, where they come all at once: then no other progress is told meanwhile."""
        check_cancelled()
        self._done += 1
        if len(statistics) == len(self._run.loaded.anatomy.parameters):
            total = len(self._everything) * len(statistics)
            self._run.emit(Progress(STAGE, min(self._done, total), total, "tensor"))

    def rank(self, metric: Metric) -> MetricRank:
        """What was counted for a metric."""
        own, counts, inside = self.own.get(metric.name), self._everything[metric.name], self._in_matrices[metric.name]
        missing = self._missing(metric, own)
        in_matrices = self._weight.parameter.name in self._matrices
        estimate = f"an estimate by {self._run.spec.probes} probes, as all it is ranked among"
        return MetricRank(
            metric=metric.name,
            score=own if own is not None and math.isfinite(own) else None,
            rank=None if missing else 1 + counts.larger,
            of=counts.all,
            equal=0 if missing else counts.equal - 1,
            rank_in_matrices=1 + inside.larger if in_matrices and not missing else None,
            of_matrices=inside.all,
            why=missing or (estimate if Needs.HESSIAN in metric.needs else ""),
        )

    def _missing(self, metric: Metric, own: float | None) -> str:
        """Why there is no rank; empty where there is one."""
        if own is None:
            return f"it ranks weights of {metric.restriction} alone" if metric.restriction else "it has no score"
        if not math.isfinite(own):
            return "its score is not finite"
        if broken := self._not_finite.get(metric.name):
            return f"a score of {broken} is not finite"
        return "" if self._everything[metric.name].equal else "its score came out differently when all were made again"
