"""The rankings of a run: every metric over all weights and over the matrices of decoder blocks, by all texts and by halves.

All come from the same pass. The scoring texts are passed in two halves, whose statistics are ranked each by itself before
they are joined: how many of the top weights are in the top of either half tells what other texts would have named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cwa_engine.data.corpus import split
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.errors import InvalidInput
from cwa_engine.events import Note, Progress
from cwa_engine.models.anatomy import Anatomy
from cwa_engine.models.loading import LoadedModel
from cwa_engine.result import MATRICES, Ranking
from cwa_engine.run import Run
from cwa_engine.score_cache import DEPTH, Kept, ScoreCache, score_keys
from cwa_engine.sensitivity.fidelity import Sample, draw_sample
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.metrics import ABLATION, METRICS, Parts, joined
from cwa_engine.sensitivity.ranking import Ranker
from cwa_engine.sensitivity.scoring import Report, score
from cwa_engine.spec import RunSpec


@dataclass(frozen=True)
class View:
    """A ranking to make: of what is in view in `loaded`, under a name of its own."""

    label: str
    metric: str
    loaded: LoadedModel


@dataclass
class _Rankers:
    """The rankers of one view: by all texts, and by each half where halves are ranked."""

    view: View
    of_all: Ranker
    of_halves: tuple[Ranker, ...]


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


def scored_rankings(
    run: Run, sequences: Sequence[TokenSequence], cache: ScoreCache | None
) -> tuple[list[Ranking], Sample | None, dict[str, str]]:
    """The rankings by scores, the sample for fidelity where it is asked for, and which label was scored by which run."""
    spec, sample = run.spec, None
    wanted_views = views(run.loaded, spec, spec.scored_metrics)
    wanted = _depth(spec)
    keys = score_keys(run, sequences, [view.label for view in wanted_views]) if cache else {}
    known = _known(run, keys, wanted, cache) if cache and not spec.fidelity else {}  # a sample is drawn from statistics
    found = {label: kept.ranking for label, kept in known.items()}
    missing = [view for view in wanted_views if view.label not in known]
    if missing:
        depth = max(wanted, DEPTH) if cache else wanted
        rankers = [_rankers(run, view, min(depth, view.loaded.anatomy.numel)) for view in missing]
        only = dataclasses.replace(run, spec=spec.model_copy(update={"metrics": tuple({v.metric: 0 for v in missing})}))
        with run.stages("score"):
            for statistics in _statistics(only, sequences, rankers):
                if spec.fidelity:
                    sample = draw_sample(run.loaded, statistics, spec)
                del statistics  # what follows needs the room
        with run.stages("select"):
            found |= {entry.view.label: _ranking(entry, spec) for entry in rankers}
        if cache:
            _keep(run, {keys[view.label]: found[view.label] for view in missing}, depth, cache)
    rankings = [shortened(found[view.label], wanted) for view in wanted_views]
    return rankings, sample, {label: kept.run_id for label, kept in known.items()}


def _depth(spec: RunSpec) -> int:
    """How many places are needed."""
    return max(spec.largest_k, spec.candidates) if ABLATION in spec.metrics else spec.largest_k


def _rankers(run: Run, view: View, depth: int) -> _Rankers:
    spec = run.spec

    def ranker(with_lowest: bool) -> Ranker:
        return Ranker(view.loaded, view.metric, depth, with_lowest, spec.structure, spec.scope)

    halves = (ranker(False), ranker(False)) if run.halves and METRICS[view.metric].needs else ()
    return _Rankers(view, ranker("bottom" in spec.controls), halves)


def _statistics(run: Run, sequences: Sequence[TokenSequence], rankers: Sequence[_Rankers]) -> Iterator[Statistics]:
    """Statistics of all weights, or of one block after the other, after every ranker was offered them."""
    halves = split(sequences) if run.halves else (sequences,)
    reports = _Reports(run, len(halves))
    streams = [score(run, half, report=reports.of(place), previews=place == 0) for place, half in enumerate(halves)]
    parts = Parts.of(halves)
    for by_half in zip(*streams, strict=True):
        if len(by_half) > 1:
            for entry in rankers:
                for ranker, statistics in zip(entry.of_halves, by_half, strict=False):
                    ranker.offer(statistics)
        together = joined(by_half, parts) if len(by_half) > 1 else by_half[0]
        del by_half
        for entry in rankers:
            entry.of_all.offer(together)
        yield together


class _Reports:
    """Progress of several streams as one."""

    def __init__(self, run: Run, streams: int) -> None:
        self._emit = run.emit
        self._done, self._total = [0] * streams, [0] * streams

    def of(self, place: int) -> Report:
        def report(stage: str, done: int, total: int, unit: str) -> None:
            self._done[place], self._total[place] = done, total
            known = [size or max(self._total) for size in self._total]  # of one that has not begun: about as much
            self._emit(Progress(stage, sum(self._done), sum(known), unit))

        return report


def _ranking(entry: _Rankers, spec: RunSpec) -> Ranking:
    """The finished ranking with what the halves rank first. Raises InvalidInput where there was nothing to rank."""
    ranking = entry.of_all.ranking()
    if not ranking.weights:
        only = "of linear layers " if entry.of_all.metric.linear_only else ""
        raise InvalidInput(
            f"no parameter {only}in view has a {spec.structure} to rank by {ranking.metric}",
            hint="heads are in attention output projections; vectors have neither rows nor columns",
        )
    halves = tuple(tuple(row.target for row in half.ranking().weights) for half in entry.of_halves)
    return dataclasses.replace(ranking, metric=entry.view.label, halves=halves if spec.scope == "global" else ())


def shortened(ranking: Ranking, k: int) -> Ranking:
    """The ranking down to place k, where more was wanted for other purposes."""
    weights = ranking.top(k)
    return dataclasses.replace(
        ranking,
        weights=weights,
        lowest=ranking.lowest[: len(weights)],
        halves=tuple(half[:k] for half in ranking.halves),
    )


def _known(run: Run, keys: Mapping[str, str], depth: int, cache: ScoreCache) -> dict[str, Kept]:
    """The rankings that an earlier run has made of the same inputs; says so."""
    entries = {label: cache.get(key, depth, "bottom" in run.spec.controls) for label, key in keys.items()}
    known = {label: kept for label, kept in entries.items() if kept}
    for label, kept in known.items():
        run.emit(
            Note(
                f"{label}: scores are those of {kept.run_id} (same model, texts and code); --no-cache computes them anew"
            )
        )
    return known


def _keep(run: Run, rankings: Mapping[str, Ranking], depth: int, cache: ScoreCache) -> None:
    try:
        for key, ranking in rankings.items():
            cache.put(key, ranking, depth)
    except OSError as error:
        run.emit(Note(f"scores cannot be kept for the next run: {error}", "warning"))
