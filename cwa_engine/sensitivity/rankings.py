"""The rankings of a run by scores: those that an earlier run has made, and the others by one pass over the scoring texts.

The texts are passed in two halves, whose statistics are ranked each by itself before they are joined: how many of the top
weights are in the top of either half tells what other texts would have named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.events import Note
from cwa_engine.data.corpus import split
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import ABLATION, METRICS
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import unit_count
from cwa_engine.rows import GIVEN, SHOWN, HalfOverlap, RankedParameter, Ranking, StoredParameter
from cwa_engine.run import RunContext
from cwa_engine.sensitivity.finalists import with_exact_scores
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.ranking import shortened
from cwa_engine.sensitivity.sample import Sample, draw_sample
from cwa_engine.sensitivity.score_cache import DEPTH, Kept, ScoreCache, score_keys
from cwa_engine.sensitivity.scoring import score
from cwa_engine.sensitivity.views import Rankers, View, views
from cwa_engine.spec import RunSpec


def scored_rankings(
    run: RunContext, sequences: Sequence[TokenSequence], cache: ScoreCache | None
) -> tuple[list[Ranking], Sample | None, dict[str, str]]:
    """The rankings by scores, the sample for fidelity where it is asked for, and which label was scored by which run."""
    spec, sample = run.spec, None
    wanted_views = views(run.loaded, spec, spec.scored_metrics)
    wanted = max(spec.largest_k, spec.candidates) if ABLATION in spec.metrics else spec.largest_k
    keys = score_keys(run, sequences, [view.label for view in wanted_views]) if cache else {}
    known = _known(run, keys, wanted, cache) if cache and not spec.fidelity else {}  # a sample is drawn from statistics
    found = {label: kept.ranking for label, kept in known.items()}
    missing = [view for view in wanted_views if view.label not in known]
    if missing:
        depth = max(wanted, DEPTH) if cache else wanted
        parts = split(sequences) if run.halves else (sequences,)
        only = dataclasses.replace(run, spec=spec.model_copy(update={"metrics": tuple({v.metric: 0 for v in missing})}))
        with run.stages("score"):
            scored = score(only, parts, lambda: _Scored(only, missing, depth), previews=True)
        with run.stages("select"):
            selected, proposals = scored.rankers.rankings(), scored.rankers.proposals()
            _check_ranked(selected, missing, spec)
        if proposals:
            with run.stages("exact"):
                selected = with_exact_scores(run, sequences, selected, proposals)
        if cache:
            _keep(run, {keys[label]: ranking for label, ranking in selected.items()}, depth, cache)
        found |= selected
        sample = scored.sample
    rankings = [shortened(found[view.label], wanted) for view in wanted_views]
    for ranking in rankings:
        if not ranking.weights:  # of a metric that nobody asked for
            run.emit(Note(f"{ranking.metric} ranks nothing that is in view, and names no candidates"))
    return rankings, sample, {label: kept.run_id for label, kept in known.items()}


class _Scored:
    """The rankings of all views, and where it is asked for the sample for fidelity."""

    def __init__(self, run: RunContext, missing: Sequence[View], depth: int) -> None:
        self._run, self.rankers = run, Rankers(missing, run.spec, depth, run.halves, counted=True)
        self.sample: Sample | None = None

    def offer(self, statistics: Statistics, part: int | None = None) -> None:
        self.rankers.offer(statistics, part)
        if self._run.spec.fidelity and part is None:
            self.sample = draw_sample(self._run.loaded, statistics, self._run.spec)


def half_overlaps(loaded: LoadedModel, rankings: Sequence[Ranking], spec: RunSpec) -> list[HalfOverlap]:
    """For each ranking that was also made by halves of the texts, how much of its top they name."""
    found = []
    for ranking in rankings:
        units = sum(unit_count(loaded.anatomy.parameters[name], ranking.structure) for name in ranking.parameters)
        for k in sorted({*spec.topk, min(SHOWN, spec.largest_k)}) if ranking.halves else ():
            ours = {weight.target for weight in ranking.top(k)}
            first, second = (set(half[:k]) for half in ranking.halves)
            found.append(
                HalfOverlap(
                    metric=ranking.metric,
                    k=k,
                    first=len(ours & first),
                    second=len(ours & second),
                    both=len(ours & first & second),
                    common=len(first & second),
                    chance=k * k / units,
                )
            )
    return found


def ranked_parameters(loaded: LoadedModel, rankings: Sequence[Ranking]) -> Iterator[RankedParameter]:
    """The parameters that metrics ranked, in the order of the model."""
    by_metric = {ranking.metric: set(ranking.parameters) for ranking in rankings if ranking.metric != GIVEN}
    structure = next((ranking.structure for ranking in rankings if ranking.metric != GIVEN), "weight")
    for name, parameter in loaded.anatomy.parameters.items():
        if metrics := tuple(metric for metric, names in by_metric.items() if name in names):
            units = unit_count(parameter, structure)
            yield RankedParameter(name, parameter.component, parameter.layer, units, metrics)


def stored_parameters(loaded: LoadedModel, rankings: Sequence[Ranking]) -> Iterator[StoredParameter]:
    """The parameters that have a weight of a ranking, in the order of the model."""
    touched = {weight.parameter for ranking in rankings for weight in ranking.weights}
    for name, parameter in loaded.anatomy.parameters.items():
        if name in touched:
            yield StoredParameter(name, parameter.shape, parameter.transposed, parameter.experts)


def _check_ranked(found: Mapping[str, Ranking], missing: Sequence[View], spec: RunSpec) -> None:
    """Raises InvalidInput where there was nothing to rank by a metric that was asked for."""
    for view in missing:
        if not found[view.label].weights and view.metric in spec.metrics:
            only = METRICS[view.metric].restriction
            raise InvalidInput(
                f"no parameter {f'of {only} ' if only else ''}in view has a {spec.structure} to rank by {view.metric}",
                hint="heads are in attention output projections; vectors have neither rows nor columns"
                if spec.structure != "weight"
                else "leave out --include and --exclude, or add another --metric",
            )


def _known(run: RunContext, keys: Mapping[str, str], depth: int, cache: ScoreCache) -> dict[str, Kept]:
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


def _keep(run: RunContext, rankings: Mapping[str, Ranking], depth: int, cache: ScoreCache) -> None:
    try:
        for key, ranking in rankings.items():
            cache.put(key, ranking, depth)
    except OSError as error:
        run.emit(Note(f"scores cannot be kept for the next run: {error}", "warning"))
