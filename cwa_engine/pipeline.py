"""A run from texts to result; the stages in reading order."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.data.use import use_texts
from cwa_engine.errors import InvalidInput, OutOfMemory, RunFailed
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.perplexity import Evaluation, baseline_of, evaluate
from cwa_engine.events import (
    PREVIEW_ROWS,
    BaselineMeasured,
    Emit,
    Note,
    Progress,
    TopK,
    VerdictReached,
    ignore,
)
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.memory import BatchSize
from cwa_engine.perturbation.ablation import Ablated, ablate, find_critical_set, propose
from cwa_engine.perturbation.damage import (
    Ground,
    check_restored,
    lay_ground,
    measure_damage,
    sequence_rows,
)
from cwa_engine.perturbation.interactions import measure_interactions
from cwa_engine.perturbation.kinds import STORED_BITS
from cwa_engine.perturbation.separation import separations, verdicts
from cwa_engine.perturbation.spike_removal import STAGE, remove_spikes
from cwa_engine.planning import choose
from cwa_engine.result import GIVEN, Baseline, Ranking, RunResult, TextUse
from cwa_engine.run import Run, Stages
from cwa_engine.score_cache import DEPTH, Kept, ScoreCache, score_keys
from cwa_engine.sensitivity.fidelity import Sample, draw_sample, fidelities, measure_predictions
from cwa_engine.sensitivity.metrics import ABLATION
from cwa_engine.sensitivity.ranking import Ranker, describe_unit
from cwa_engine.sensitivity.scoring import score
from cwa_engine.sensitivity.stability import agreements, marked, measure_stability
from cwa_engine.spec import RunSpec
from cwa_engine.structures import common_structure, find_weights, parse_target, unit_count, unit_of


def analyze(loaded: LoadedModel, spec: RunSpec, emit: Emit = ignore, cache: ScoreCache | None = None) -> RunResult:
    """Rank the critical weights of `loaded`, damage them, measure what follows. What is in `cache` is not scored again.

    Raises DataError, InvalidInput, ModelBroken, OutOfMemory or RunFailed; whatever is raised, the weights are as before.
    """
    with _out_of_memory_named(loaded, spec):
        for note in loaded.notes:  # a warm model says them again: they belong to every result
            emit(Note(note, "warning"))
        all_weights = loaded.anatomy.numel
        loaded = dataclasses.replace(loaded, anatomy=loaded.anatomy.only(spec.include, spec.exclude))
        given = given_ranking(loaded, spec)
        _check_bits(loaded, spec)
        _check_topk(loaded, spec)
        use, scoring, evaluation = use_texts(loaded, spec, emit)
        choice = choose(loaded, spec, scoring)
        if choice.why:
            emit(Note(choice.why, choice.level))
        batch_size = BatchSize(choice.batch_size, lambda text: emit(Note(text, "warning")))
        run = Run(loaded, spec, emit, Stages(emit), batch_size, choice.gradients)

        with run.stages("baseline"):
            intact, baseline = measure_baseline(run, evaluation, use)
        scored, sample, scores_from = scored_rankings(run, scoring, cache)
        by_metric = {ranking.metric: shortened(ranking, spec.largest_k) for ranking in scored}
        rankings = (*given, *(by_metric[name] for name in spec.metrics if name in by_metric))
        for ranking in rankings:
            emit(TopK(ranking.metric, False, ranking.weights[:PREVIEW_ROWS]))
        result = RunResult(all_weights, loaded.anatomy.numel, use, baseline, rankings)
        ablated = None
        if ABLATION in spec.metrics:
            with run.stages("ablate"):
                named = {ranking.metric: ranking for ranking in scored}
                candidates = propose([named[name] for name in spec.turns], spec.candidates)
                ablated = ablate(loaded, scoring, candidates, spec.largest_k, spec.seed, emit)
            result = with_ablation(result, ablated)
        if spec.iterate:
            with run.stages(STAGE):
                result = dataclasses.replace(result, spike_removal=remove_spikes(loaded, scoring, spec.iterate, emit))
        if spec.stability:
            with run.stages("stability"):
                result = with_stability(run, result, scoring)
        if spec.damages or sample or spec.critical_set:
            ground = lay_ground(loaded, evaluation, intact, result.rankings, spec, batch_size)
            if spec.damages:
                result = with_damage(run, result, ground)
            if ablated and spec.critical_set:
                with run.stages("critical set"):
                    found = find_critical_set(ground, scoring, ablated.finalists, spec.critical_set, emit)
                    result = dataclasses.replace(result, critical_set=found)
            if sample:
                with run.stages("fidelity"):
                    result = with_fidelity(run, result, ground, sample)
            result = dataclasses.replace(result, floor=check_restored(ground))

    return dataclasses.replace(
        result,
        gradients=run.gradients,
        scores_from=scores_from,
        batch_size=batch_size.size,
        timings=run.stages.timings,
        peak_memory_bytes=peak_memory_bytes(loaded),
    )


def scored_rankings(
    run: Run, sequences: Sequence[TokenSequence], cache: ScoreCache | None
) -> tuple[list[Ranking], Sample | None, dict[str, str]]:
    """The rankings by scores, the sample for fidelity where it is asked for, and which metric was scored by which run."""
    spec, sample = run.spec, None
    most = run.loaded.anatomy.numel
    wanted = min(most, max(spec.largest_k, spec.candidates) if ABLATION in spec.metrics else spec.largest_k)
    keys = score_keys(run, sequences) if cache else {}
    known = _known(run, keys, wanted, cache) if cache and not spec.fidelity else {}  # a sample is drawn from statistics
    found = {name: kept.ranking for name, kept in known.items()}
    missing = tuple(name for name in spec.scored_metrics if name not in known)
    if missing:
        depth = min(most, max(wanted, DEPTH)) if cache else wanted
        rankers = [_ranker(run.loaded, name, depth, spec) for name in missing]
        only = dataclasses.replace(run, spec=spec.model_copy(update={"metrics": missing}))
        with run.stages("score"):
            for statistics in score(only, sequences):  # of all weights, or of one block after the other
                for ranker in rankers:
                    ranker.offer(statistics)
                if spec.fidelity:
                    sample = draw_sample(run.loaded, statistics, spec)
                del statistics  # what follows needs the room
        with run.stages("select"):
            found |= {ranker.metric.name: _checked(ranker, spec) for ranker in rankers}
        if cache:
            _keep(run, {keys[name]: found[name] for name in missing}, depth, cache)
    rankings = [shortened(found[name], wanted) for name in spec.scored_metrics]
    for ranking in rankings:
        if not ranking.weights:  # of a metric that nobody asked for
            run.emit(Note(f"{ranking.metric} ranks nothing that is in view, and names no candidates"))
    return rankings, sample, {name: kept.run_id for name, kept in known.items()}


def _known(run: Run, keys: Mapping[str, str], depth: int, cache: ScoreCache) -> dict[str, Kept]:
    """The rankings that an earlier run has made of the same inputs; says so."""
    entries = {name: cache.get(key, depth, "bottom" in run.spec.controls) for name, key in keys.items()}
    known = {name: kept for name, kept in entries.items() if kept}
    for name, kept in known.items():
        run.emit(
            Note(
                f"{name}: scores are those of {kept.run_id} (same model, texts and code); --no-cache computes them anew"
            )
        )
    return known


def _keep(run: Run, rankings: Mapping[str, Ranking], depth: int, cache: ScoreCache) -> None:
    try:
        for key, ranking in rankings.items():
            cache.put(key, ranking, depth)
    except OSError as error:
        run.emit(Note(f"scores cannot be kept for the next run: {error}", "warning"))


def with_ablation(result: RunResult, ablated: Ablated) -> RunResult:
    """The result with the exact ranking beside those by scores."""
    rankings = (*result.rankings, ablated.ranking)
    return dataclasses.replace(result, rankings=rankings, ablations=ablated.rows, ablation_cost=ablated.cost)


def with_stability(run: Run, result: RunResult, sequences: Sequence[TokenSequence]) -> RunResult:
    """The result with the rankings of every repeat compared, and the weights marked that are in all of them."""
    found = measure_stability(run.loaded, sequences, run.spec, lambda texts: score(run, texts, stage="stability"))
    return dataclasses.replace(
        result,
        rankings=tuple(marked(r, found[r.metric]) if r.metric in found else r for r in result.rankings),
        stability=tuple(agreements(run.loaded, found, run.spec)),
    )


def with_damage(run: Run, result: RunResult, ground: Ground) -> RunResult:
    """The result with every critical set and control measured and compared, and where asked for each weight alone."""
    with run.stages("perturb"):
        measured = measure_damage(ground, result.rankings, run.emit)
        rows = separations(ground, measured)
        sentences = verdicts(measured, rows)
        for verdict in sentences:
            run.emit(VerdictReached(verdict))
    result = dataclasses.replace(
        result,
        damage=tuple(entry.point for entry in measured),
        separations=tuple(rows),
        verdicts=tuple(sentences),
        evaluations=tuple(sequence_rows(ground.intact, measured)),
    )
    if run.spec.individually:
        with run.stages("interactions"):
            found = measure_interactions(ground, result.rankings, measured, run.emit)
            result = dataclasses.replace(result, interactions=tuple(found))
    return result


def with_fidelity(run: Run, result: RunResult, ground: Ground, sample: Sample) -> RunResult:
    """The result with what the metrics foretold compared with what was measured."""
    rows = measure_predictions(ground, sample, run.emit)
    scores = fidelities(rows, run.spec.scored_metrics)
    return dataclasses.replace(result, predictions=tuple(rows), fidelity=tuple(scores))


def measure_baseline(run: Run, sequences: Sequence[TokenSequence], use: TextUse) -> tuple[Evaluation, Baseline]:
    """The intact model on the evaluation texts. Raises RunFailed where its loss is not finite."""

    def report(done: int) -> None:
        run.emit(Progress("baseline", done, len(sequences), "sequence"))

    report(0)
    intact = run.batch_size.run(lambda size: evaluate(run.loaded, sequences, size, report))
    if not math.isfinite(intact.nll):
        number = int(np.flatnonzero(~np.isfinite(intact.nll_sums))[0])
        where = first_non_finite_layer(run.loaded, [sequences[number]])
        raise RunFailed(
            f"the intact model's loss is {intact.nll_sums[number]} on evaluation sequence {number + 1} of "
            f"{len(sequences)}, first at {where}",
            hint="float16 overflows easily; try --dtype float32 or bfloat16",
        )
    baseline = baseline_of(intact, sequences, use.seq_len, use.packed, use.bos)
    run.emit(BaselineMeasured(baseline))
    return intact, baseline


def _ranker(loaded: LoadedModel, metric: str, k: int, spec: RunSpec) -> Ranker:
    return Ranker(loaded, metric, k, "bottom" in spec.controls, spec.structure, spec.scope)


def shortened(ranking: Ranking, k: int) -> Ranking:
    """The ranking down to place k, where more was wanted for other purposes."""
    weights = ranking.top(k)
    kept = len(weights)
    return dataclasses.replace(ranking, weights=weights, lowest=ranking.lowest[:kept], spikes=ranking.spikes[:kept])


def _checked(ranker: Ranker, spec: RunSpec) -> Ranking:
    """The finished ranking. Raises InvalidInput where there was nothing to rank by a metric that was asked for."""
    ranking = ranker.ranking()
    if not ranking.weights and ranker.metric.name in spec.metrics:
        only = ranker.metric.ranks_only
        raise InvalidInput(
            f"no parameter {f'of {only} ' if only else ''}in view has a {spec.structure} to rank by {ranking.metric}",
            hint="heads are in attention output projections; vectors have neither rows nor columns"
            if spec.structure != "weight"
            else "leave out --include and --exclude, or add another --metric",
        )
    return ranking


def given_ranking(loaded: LoadedModel, spec: RunSpec) -> tuple[Ranking, ...]:
    """The weights given by name, in their order, as if a metric had named them; none where none are given."""
    if not spec.weights:
        return ()
    parameters = loaded.anatomy.parameters
    targets = [parse_target(text) for text in spec.weights]
    structure = common_structure(targets, parameters)
    units: dict[tuple[str, int], None] = {}
    for target in targets:
        for index in find_weights(target, parameters).tolist():
            units[target.parameter, unit_of(parameters[target.parameter], structure, index)] = None
    rows = [
        describe_unit(loaded, parameters[name], structure, unit, place, None)
        for place, (name, unit) in enumerate(units, start=1)
    ]
    ranked = [name for name, parameter in parameters.items() if unit_count(parameter, structure)]
    return (Ranking(GIVEN, tuple(rows), structure=structure, parameters=tuple(ranked)),)


def _check_topk(loaded: LoadedModel, spec: RunSpec) -> None:
    units = sum(unit_count(parameter, spec.structure) for parameter in loaded.anatomy.parameters.values())
    if spec.metrics and units and spec.largest_k > units:
        raise InvalidInput(
            f"--topk {spec.largest_k} is more than the {units:,} {spec.structure}s of {spec.model}"
            + (" that are in view" if spec.include or spec.exclude else ""),
            hint="a critical set is small: try 100" if units > 100 else f"try {min(units, 5)}",
        )


def _check_bits(loaded: LoadedModel, spec: RunSpec) -> None:
    """Before anything is computed: whether the weights as stored have the bit that is to be flipped."""
    bits = STORED_BITS.get(loaded.dtype, 0)
    if "bit_flip" in spec.perturbations and isinstance(spec.bit, int) and spec.bit >= bits:
        raise InvalidInput(
            f"{loaded.dtype} has no bit {spec.bit}", hint=f"its bits are 0 to {bits - 1}, {bits - 1} is the sign"
        )


@contextmanager
def _out_of_memory_named(loaded: LoadedModel, spec: RunSpec) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError; so is its CPU counterpart
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        smaller = max(1, (spec.batch_size or loaded.default_batch_size) // 2)
        raise OutOfMemory(
            f"out of memory while {spec.model} was analysed",
            hint=f"try --batch-size {smaller}, --seq-len {max(2, spec.seq_len // 2)}, --dtype bfloat16, "
            "or `cwtool unload` other models",
        ) from error


def peak_memory_bytes(loaded: LoadedModel) -> int:
    """Largest memory so far: of the device on an accelerator, of this process on a CPU."""
    if loaded.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(loaded.device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
