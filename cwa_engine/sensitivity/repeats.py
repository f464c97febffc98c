"""The rankings of a run made again by some of its scoring texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.errors import DataError
from cwa_engine.base.statistics import Array
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.controls import Selection, by_parameter
from cwa_engine.methods.metrics import METRICS
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import unit_count
from cwa_engine.rows import Ranking
from cwa_engine.run import RunContext
from cwa_engine.sensitivity.finalists import with_exact_scores
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.ranking import scores_at, shortened
from cwa_engine.sensitivity.scoring import score
from cwa_engine.sensitivity.views import Rankers, View
from cwa_engine.spec import RunSpec

SAMPLE = 100_000  # units whose scores are compared beyond the top: enough for a rank correlation to two digits


@dataclass(frozen=True)
class Repeat:
    """A metric's ranking by some of the texts, and its scores of the sampled units."""

    ranking: Ranking
    scores: Array


def repeats(sequences: Sequence[TokenSequence], how: str | int, seed: int) -> list[list[TokenSequence]]:
    """The texts of each repeat: two disjoint halves, or so many resamples with replacement.

    Raises DataError where there are too few texts for two halves.
    """
    if len(sequences) < 2:
        raise DataError("stability needs at least two scoring texts", hint="give more texts, or a larger --eval-limit")
    if how == "halves":
        return [list(sequences[0::2]), list(sequences[1::2])]
    rng = np.random.default_rng(seed)
    return [[sequences[place] for place in rng.integers(0, len(sequences), len(sequences))] for _ in range(int(how))]


class _Scores:
    """The rankings of all metrics, and their scores of a sample of units."""

    def __init__(self, run: RunContext, sample: Selection) -> None:
        self._run, self._sample = run, sample
        views = [View(name, name, run.loaded) for name in run.spec.scored_metrics]
        self.rankers = Rankers(views, run.spec, run.spec.largest_k)
        self._scores: dict[str, dict[str, Array]] = {name: {} for name in run.spec.scored_metrics}

    def offer(self, statistics: Statistics, part: int | None = None) -> None:
        self.rankers.offer(statistics, part)
        for name, found in self._scores.items():
            found.update(scores_at(self._run.loaded, statistics, METRICS[name], self._run.spec.structure, self._sample))

    def sampled(self, metric: str) -> Array:
        """The scores of the sampled units that the metric ranks, in their order."""
        found = self._scores[metric]
        return np.concatenate([found[parameter] for parameter in self._sample if parameter in found])


def rank_repeats(run: RunContext, sequences: Sequence[TokenSequence], stage: str) -> dict[str, list[Repeat]]:
    """Score and rank by every repeat's texts; one repeat's statistics are in memory at a time."""
    spec = run.spec
    found: dict[str, list[Repeat]] = {name: [] for name in spec.scored_metrics}
    sample = _sample(run.loaded, spec)
    for texts in repeats(sequences, spec.stability or "halves", spec.seed):
        scores = score(run, [texts], lambda: _Scores(run, sample), stage)
        rankings, proposals = scores.rankers.rankings(), scores.rankers.proposals()
        for name, ranking in with_exact_scores(run, texts, rankings, proposals, stage).items():
            found[name].append(Repeat(shortened(ranking, spec.largest_k), scores.sampled(name)))
    return found


def _sample(loaded: LoadedModel, spec: RunSpec) -> Selection:
    """The same random units for every repeat."""
    counts = {name: unit_count(parameter, spec.structure) for name, parameter in loaded.anatomy.parameters.items()}
    sizes = {name: units for name, units in counts.items() if units}
    total = sum(sizes.values())
    rng = np.random.default_rng(spec.seed)
    chosen = np.unique(rng.integers(0, total, SAMPLE)) if total > SAMPLE else np.arange(total)
    return by_parameter(chosen, sizes)
