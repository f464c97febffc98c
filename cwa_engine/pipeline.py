"""A run from texts to result; the stages in reading order."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from cwa_engine.base.errors import InvalidInput, OutOfMemory, RunFailed
from cwa_engine.base.events import (
    PREVIEW_ROWS,
    BaselineMeasured,
    Emit,
    Note,
    Progress,
    TopK,
    VerdictReached,
    ignore,
)
from cwa_engine.damage.curves import control_rows, measure_damage, sequence_rows
from cwa_engine.damage.measurement import (
    MeasurementContext,
    check_restored,
    prepare_measurement,
    with_rounding,
)
from cwa_engine.damage.separation import separations, verdicts
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.loss_scale import LossScale
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.evaluation.perplexity import baseline_of, evaluate
from cwa_engine.methods.metrics import ABLATION
from cwa_engine.methods.perturbations import STORED_BITS
from cwa_engine.models.anatomy import config_number
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.fan_out import trace_norms
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import common_structure, find_weights, unit_count, unit_of
from cwa_engine.planning import choose
from cwa_engine.questions.ablation import Ablated, ablate
from cwa_engine.questions.critical_set import find_critical_set
from cwa_engine.questions.fidelity import measure_predictions
from cwa_engine.questions.interactions import measure_interactions
from cwa_engine.questions.prediction import fidelities
from cwa_engine.questions.spike_removal import STAGE, remove_spikes
from cwa_engine.questions.stability import agreements, half_overlaps, marked, measure_stability
from cwa_engine.rows import GIVEN, Baseline, Ranking, RunResult, TextUse
from cwa_engine.run import Run, Stages
from cwa_engine.sensitivity.candidates import propose
from cwa_engine.sensitivity.ranking import describe_unit, shortened
from cwa_engine.sensitivity.rankings import scored_rankings
from cwa_engine.sensitivity.sample import Sample
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.sensitivity.views import views
from cwa_engine.spec import RunSpec
from cwa_engine.targets import parse_target
from cwa_engine.text_use import use_texts


def analyze(
    loaded: LoadedModel,
    spec: RunSpec,
    emit: Emit = ignore,
    cache: ScoreCache | None = None,
    texts: Sequence[str] | None = None,
) -> RunResult:
    """Rank the critical weights of `loaded`, damage them, measure what follows. What is in `cache` is not scored again.

    The texts are `texts` where they are given, else those that the spec names.

    Raises DataError, InvalidInput, ModelBroken, OutOfMemory or RunFailed; whatever is raised, the weights are as before.
    """
    with _out_of_memory_named(loaded, spec):
        for note in loaded.notes:  # a warm model says them again: they belong to every result
            emit(Note(note, "warning"))
        all_weights = loaded.anatomy.numel
        trace_norms(loaded)  # of the whole model, and while no activations are recorded
        loaded = dataclasses.replace(loaded, anatomy=loaded.anatomy.only(spec.include, spec.exclude))
        given = given_ranking(loaded, spec)
        _check_bits(loaded, spec)
        _check_topk(loaded, spec)
        use, scoring, evaluation = use_texts(loaded, spec, emit, texts)
        choice = choose(loaded, spec, scoring)
        if choice.why:
            emit(Note(choice.why, choice.level))

        def warn(text: str) -> None:
            emit(Note(text, "warning"))

        batch_size, loss_scale = BatchSize(choice.batch_size, warn), LossScale(loaded.model, warn)
        run = Run(loaded, spec, emit, Stages(emit), batch_size, choice.gradients, loss_scale, choice.halves)

        with run.stages("baseline"):
            intact, baseline = measure_baseline(run, evaluation, use)
        scored, sample, scores_from = scored_rankings(run, scoring, cache)
        asked = {view.label for view in views(loaded, spec, spec.metrics)}
        rankings = (*given, *(shortened(ranking, spec.largest_k) for ranking in scored if ranking.metric in asked))
        for ranking in rankings:
            emit(TopK(ranking.metric, False, ranking.weights[:PREVIEW_ROWS]))
        halves = tuple(half_overlaps(loaded, rankings, spec))
        result = RunResult(all_weights, loaded.anatomy.numel, use, baseline, rankings, halves)
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
            result = with_measurements(run, result, evaluation, intact, scoring, ablated, sample)

    return dataclasses.replace(
        result,
        gradients=run.gradients,
        scores_from=scores_from,
        batch_size=batch_size.size,
        timings=run.stages.timings,
        peak_memory_bytes=peak_memory_bytes(loaded),
    )


def with_measurements(
    run: Run, result: RunResult, evaluation: Sequence[TokenSequence], intact: Evaluation,
    scoring: Sequence[TokenSequence], ablated: Ablated | None, sample: Sample | None,
) -> RunResult:  # fmt: skip
    """The result with all that is measured by changing weights, and the check that they are as before."""
    spec = run.spec
    with run.stages("prepare"):
        context = prepare_measurement(run.loaded, evaluation, intact, spec, run.batch_size)
        if result.rankings:
            context = with_rounding(context, result.rankings[0], spec.largest_k)
    if spec.damages:
        result = with_damage(run, result, context)
    if ablated and spec.critical_set:
        with run.stages("critical set"):
            found = find_critical_set(context, scoring, ablated.finalists, spec.critical_set, run.emit)
            result = dataclasses.replace(result, critical_set=found)
    if sample:
        with run.stages("fidelity"):
            result = with_fidelity(run, result, context, sample)
    with run.stages("check"):
        return dataclasses.replace(result, floor=check_restored(context))


def with_ablation(result: RunResult, ablated: Ablated) -> RunResult:
    """The result with the exact ranking beside those by scores."""
    rankings = (*result.rankings, ablated.ranking)
    return dataclasses.replace(result, rankings=rankings, ablations=ablated.rows, ablation_cost=ablated.cost)


def with_stability(run: Run, result: RunResult, sequences: Sequence[TokenSequence]) -> RunResult:
    """The result with the rankings of every repeat compared, and the weights marked that are in all of them."""
    found = measure_stability(run, sequences)
    return dataclasses.replace(
        result,
        rankings=tuple(marked(r, found[r.metric]) if r.metric in found else r for r in result.rankings),
        stability=tuple(agreements(run.loaded, found, run.spec)),
    )


def with_damage(run: Run, result: RunResult, context: MeasurementContext) -> RunResult:
    """The result with every critical set and control measured and compared, and where asked for each weight alone."""
    with run.stages("perturb"):
        measured = measure_damage(context, result.rankings, run.emit)
        rows = separations(context.reference, measured)
        sentences = verdicts(context.reference, result.baseline, measured, rows)
        for verdict in sentences:
            run.emit(VerdictReached(verdict))
    result = dataclasses.replace(
        result,
        damage=tuple(damaged.point for entry in measured for damaged in entry.damaged),
        separations=tuple(rows),
        verdicts=tuple(sentences),
        controls=tuple(control_rows(context, measured)),
        evaluations=tuple(sequence_rows(context, measured)),
    )
    if run.spec.individually:
        with run.stages("interactions"):
            found = measure_interactions(context, result.rankings, measured, run.emit)
            result = dataclasses.replace(result, interactions=tuple(found))
    return result


def with_fidelity(run: Run, result: RunResult, context: MeasurementContext, sample: Sample) -> RunResult:
    """The result with what the metrics foretold compared with what was measured."""
    rows = measure_predictions(context, sample, run.emit)
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
    baseline = baseline_of(intact, sequences, use, config_number(run.loaded.model, "vocab_size") or 0)
    run.emit(BaselineMeasured(baseline))
    if baseline.is_guessing:
        run.emit(
            Note(
                f"the intact model is no better than guessing: {baseline.nll:.3f} nats per token, a guess among "
                f"{baseline.vocabulary:,} tokens has {math.log(baseline.vocabulary):.3f}; is it trained, and whole?",
                "warning",
            )
        )
    return intact, baseline


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
