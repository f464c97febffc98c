"""What a run ranks: every metric over all that is in view and over the matrices of decoder blocks, by all texts and by halves.

All these rankings come from the same pass over the scoring texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.methods.metrics import ABLATION, METRICS, Metric
from cwa_engine.models.anatomy import Anatomy
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import MATRICES, Ranking
from cwa_engine.sensitivity.finalists import MOST, PROPOSER, has_finalists
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.ranking import Ranker
from cwa_engine.sensitivity.score_counts import ScoreCounts
from cwa_engine.spec import RunSpec


@dataclass(frozen=True)
class View:
    """A ranking to make: of what is in view in `loaded`, under a name of its own."""

    label: str
    metric: str
    loaded: LoadedModel


def views(loaded: LoadedModel, spec: RunSpec, metrics: Sequence[str]) -> list[View]:
    """Each metric over all that is in view, and over the matrices in decoder blocks where that is something else."""
    matrices = matrices_in_blocks(loaded.anatomy)
    plain = spec.structure == "weight" and spec.scope == "global" and not (spec.include or spec.exclude)
    differ = 0 < len(matrices) < len(loaded.anatomy.parameters)
    asked = spec.matrices and plain and differ and spec.largest_k <= loaded.anatomy.subset(matrices).numel
    found = []
    for name in metrics:
        found.append(View(name, name, loaded))
        if asked and name in spec.metrics and name != ABLATION and not METRICS[name].linear_only:
            found.append(View(name + MATRICES, name, loaded.with_parameters(matrices)))
    return found


def matrices_in_blocks(anatomy: Anatomy) -> list[str]:
    """The parameters that Wanda, SparseGPT and most of pruning rank: no embeddings, norms, biases, and no head."""
    return [name for name, p in anatomy.parameters.items() if p.layer is not None and not p.is_vector]


class Rankers:
    """The rankers of every view: by all texts, by each half where halves are ranked, and of those that name finalists."""

    def __init__(
        self, views: Sequence[View], spec: RunSpec, depth: int, halves: bool = False, counted: bool = False
    ) -> None:
        """Each keeps at least `depth` places of a group. `counted`: the scores by all texts are counted."""
        self._views = views
        self._counts = {view.label: ScoreCounts() for view in views} if counted else {}

        def ranker(view: View, metric: Metric, k: int, with_lowest: bool, counts: ScoreCounts | None = None) -> Ranker:
            k = min(k, view.loaded.anatomy.numel)
            return Ranker(view.loaded, metric, k, with_lowest, spec.structure, spec.scope, counts)

        self._of_all, self._of_halves, self._proposers = {}, {}, {}
        for view in views:
            metric = METRICS[view.metric]
            estimated = has_finalists(metric, spec.structure)
            places = max(depth, MOST) if estimated else depth
            self._of_all[view.label] = ranker(
                view, metric, places, "bottom" in spec.controls, self._counts.get(view.label)
            )
            if halves and metric.needs and spec.scope == "global":
                self._of_halves[view.label] = [ranker(view, metric, depth, False) for _ in range(2)]
            if estimated:
                self._proposers[view.label] = ranker(view, PROPOSER, MOST, False)

    def offer(self, statistics: Statistics, part: int | None = None) -> None:
        """Score the parameters that these statistics are of: those of one half of the texts, or of all."""
        if part is None:
            chosen = [*self._of_all.values(), *self._proposers.values()]
        else:
            chosen = [rankers[part] for rankers in self._of_halves.values()]
        for ranker in chosen:
            ranker.offer(statistics)

    def rankings(self) -> dict[str, Ranking]:
        """By label, each with what the halves rank first, and the counts of its scores."""
        return {view.label: self._ranking(view) for view in self._views}

    def _ranking(self, view: View) -> Ranking:
        halves = tuple(half.targets() for half in self._of_halves.get(view.label, ()))
        bins = self._counts[view.label].rows(view.label) if self._counts else ()
        return dataclasses.replace(self._of_all[view.label].ranking(), metric=view.label, halves=halves, bins=bins)

    def proposals(self) -> dict[str, Ranking]:
        """What else names finalists, by label of the rankings that have any."""
        return {label: ranker.ranking() for label, ranker in self._proposers.items()}
