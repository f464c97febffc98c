"""A run from texts to result; the stages in reading order."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from cwa_engine.data import corpus
from cwa_engine.data.tokens import TokenSequence, pack, tokenize
from cwa_engine.errors import InvalidInput, ModelBroken, OutOfMemory, RunFailed
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.perplexity import Evaluation, baseline_of, evaluate
from cwa_engine.events import (
    PREVIEW_ROWS,
    BaselineMeasured,
    Emit,
    Note,
    Progress,
    StageFinished,
    StageStarted,
    TopK,
    VerdictReached,
    ignore,
)
from cwa_engine.models.chain import NotAChain
from cwa_engine.models.loading import LoadedModel, is_out_of_memory
from cwa_engine.models.memory import BatchSize, fits_resident
from cwa_engine.perturbation.damage import (
    Ground,
    Measured,
    check_restored,
    lay_ground,
    measure_damage,
    sequence_rows,
)
from cwa_engine.perturbation.interactions import measure_interactions
from cwa_engine.perturbation.kinds import STORED_BITS
from cwa_engine.perturbation.separation import separations, verdicts
from cwa_engine.result import GIVEN, Baseline, Ranking, RunResult, TextUse
from cwa_engine.sensitivity.fidelity import draw_sample, fidelities, measure_predictions
from cwa_engine.sensitivity.gradients import SoFar, Statistics, resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.metrics import METRICS, Needs, needs_of
from cwa_engine.sensitivity.ranking import Ranker, describe_unit, rank
from cwa_engine.sensitivity.stability import agreements, marked, measure_stability
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from cwa_engine.structures import common_structure, find_weights, parse_target, unit_count, unit_of

_UNKNOWN_SO_FAR = Needs.HESSIAN | Needs.INPUT_GRAM  # what a partial ranking cannot be made from

FAST_SHARE = 4  # --fast-perturbation uses a quarter of the evaluation texts,
FAST_LEAST = 4  # but at least four


class Stages:
    """Times the stages of a run and says when each begins and ends."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.emit(StageStarted(name))
        began = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - began
        self.emit(StageFinished(name, self.timings[name]))


def analyze(loaded: LoadedModel, spec: RunSpec, emit: Emit = ignore) -> RunResult:
    """Rank the critical weights of `loaded`, damage them, measure what follows.

    Raises DataError, InvalidInput, ModelBroken, OutOfMemory or RunFailed; whatever is raised, the weights are as before.
    """
    with _out_of_memory_named(loaded, spec):
        stages = Stages(emit)
        all_weights = loaded.anatomy.numel
        loaded = dataclasses.replace(loaded, anatomy=loaded.anatomy.only(spec.include, spec.exclude))
        given = given_ranking(loaded, spec)
        _check_bits(loaded, spec)
        _check_topk(loaded, spec)
        use, scoring, evaluation = _sequences(loaded, spec, emit)
        batch_size = BatchSize(spec.batch_size or loaded.default_batch_size, lambda text: emit(Note(text, "warning")))

        with stages("baseline"):
            intact, baseline = measure_baseline(loaded, evaluation, spec, batch_size, emit)
        sample = None
        rankers = [_ranker(loaded, name, spec) for name in spec.metrics]
        with stages("score"):
            for statistics in score(
                loaded, scoring, spec, batch_size, emit
            ):  # of all weights, or of one block after the other
                for ranker in rankers:
                    ranker.offer(statistics)
                if spec.fidelity:
                    sample = draw_sample(loaded, statistics, spec)
                del statistics  # what follows needs the room
        with stages("select"):
            rankings = (*given, *(_checked(ranker, spec) for ranker in rankers))
            for ranking in rankings:
                emit(TopK(ranking.metric, False, ranking.weights[:PREVIEW_ROWS]))

        result = RunResult(all_weights, loaded.anatomy.numel, use, baseline, rankings)
        if spec.stability:
            with stages("stability"):
                result = with_stability(result, loaded, scoring, spec, batch_size, emit)
        if spec.damages or sample:
            ground = lay_ground(loaded, evaluation, intact, result.rankings, spec, batch_size)
            measured: list[Measured] = []
            if spec.damages:
                with stages("perturb"):
                    result, measured = with_damage(result, ground, emit)
            if spec.individually:
                with stages("interactions"):
                    found = measure_interactions(ground, result.rankings, measured, emit)
                    result = dataclasses.replace(result, interactions=tuple(found))
            if sample:
                with stages("fidelity"):
                    rows = measure_predictions(ground, sample, emit)
                    scores = fidelities(rows, spec.metrics)
                    result = dataclasses.replace(result, predictions=tuple(rows), fidelity=tuple(scores))
            result = dataclasses.replace(result, floor=check_restored(ground))

    return dataclasses.replace(result, timings=stages.timings, peak_memory_bytes=peak_memory_bytes(loaded))


def with_stability(
    result: RunResult,
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    spec: RunSpec,
    batch_size: BatchSize,
    emit: Emit,
) -> RunResult:
    """The result with the rankings of every repeat compared, and the weights marked that are in all of them."""

    def score_quietly(texts: Sequence[TokenSequence]) -> Iterator[Statistics]:
        return score(loaded, texts, spec, batch_size, emit, stage="stability")

    found = measure_stability(loaded, sequences, spec, score_quietly)
    return dataclasses.replace(
        result,
        rankings=tuple(marked(r, found[r.metric]) if r.metric in found else r for r in result.rankings),
        stability=tuple(agreements(loaded, found, spec)),
    )


def with_damage(result: RunResult, ground: Ground, emit: Emit) -> tuple[RunResult, list[Measured]]:
    """The result with every critical set and control measured and compared; and the measurements."""
    measured = measure_damage(ground, result.rankings, emit)
    rows = separations(ground, measured)
    sentences = verdicts(measured, rows)
    for verdict in sentences:
        emit(VerdictReached(verdict))
    compared = dataclasses.replace(
        result,
        damage=tuple(entry.point for entry in measured),
        separations=tuple(rows),
        verdicts=tuple(sentences),
        evaluations=tuple(sequence_rows(ground.intact, measured)),
    )
    return compared, measured


def measure_baseline(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], spec: RunSpec, batch_size: BatchSize, emit: Emit
) -> tuple[Evaluation, Baseline]:
    """The intact model on the evaluation texts. Raises RunFailed where its loss is not finite."""

    def report(done: int) -> None:
        emit(Progress("baseline", done, len(sequences), "sequence"))

    report(0)
    intact = batch_size.run(lambda size: evaluate(loaded, sequences, size, report))
    if not math.isfinite(intact.nll):
        number = int(np.flatnonzero(~np.isfinite(intact.nll_sums))[0])
        where = first_non_finite_layer(loaded, [sequences[number]])
        raise RunFailed(
            f"the intact model's loss is {intact.nll_sums[number]} on evaluation sequence {number + 1} of "
            f"{len(sequences)}, first at {where}",
            hint="float16 overflows easily; try --dtype float32 or bfloat16",
        )
    baseline = baseline_of(intact, sequences, spec.seq_len, spec.packed)
    emit(BaselineMeasured(baseline))
    return intact, baseline


def score(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    spec: RunSpec,
    batch_size: BatchSize,
    emit: Emit,
    stage: str = "score",
) -> Iterator[Statistics]:
    """What the metrics need, over the scoring texts: of all weights at once, or of one block after the other."""
    needs = needs_of(spec.metrics)
    if sweeps(loaded, spec, needs):

        def begin(size: int) -> tuple[Statistics, Iterator[Statistics]]:
            parts = sweep(loaded, sequences, needs, size, lambda d, n: emit(Progress(stage, d, n, "block")))
            return next(parts), parts

        try:
            first, others = batch_size.run(begin)
        except NotAChain as reason:
            emit(Note(f"the gradients of all weights are kept at once: {reason}", "warning"))
        else:
            yield first
            del first
            yield from others
            return
    yield score_at_once(loaded, sequences, needs, spec, batch_size, emit, stage)


def sweeps(loaded: LoadedModel, spec: RunSpec, needs: Needs) -> bool:
    """Whether gradients are made block by block: where that was asked for, or where all of them do not fit."""
    if spec.gradients != "auto":
        return spec.gradients == "sweep" and needs is not Needs.NOTHING
    return not (spec.fidelity or Needs.HESSIAN in needs or fits_resident(loaded, needs))


def score_at_once(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    spec: RunSpec,
    batch_size: BatchSize,
    emit: Emit,
    stage: str,
) -> Statistics:
    """The statistics of all weights; a partial ranking is shown after 1, 4, 16 ... batches."""
    batches_done, next_preview = 0, 1

    def after_batch(done: int, so_far: SoFar) -> None:
        nonlocal batches_done, next_preview
        batches_done += 1
        emit(Progress(stage, done, len(sequences), "sequence"))
        if stage == "score" and batches_done == next_preview and done < len(sequences):
            next_preview *= 4  # a preview costs about 0.1 s on 135M weights: few of them, while all is young
            statistics = so_far()
            rows = min(spec.largest_k, PREVIEW_ROWS)
            for name in spec.metrics:
                if METRICS[name].needs & _UNKNOWN_SO_FAR:
                    continue
                ranking = rank(loaded, statistics, name, rows, structure=spec.structure, scope=spec.scope)
                emit(TopK(name, True, ranking.weights[:PREVIEW_ROWS]))

    if needs is not Needs.NOTHING:
        emit(Progress(stage, 0, len(sequences), "sequence"))
    statistics = batch_size.run(lambda size: resident(loaded, sequences, needs, size, after_batch))
    if Needs.HESSIAN in needs:

        def report(done: int) -> None:
            emit(Progress(stage, done, len(sequences), "sequence"))

        diagonal = hutchinson_diagonal(loaded, sequences, spec.probes, spec.seed, report)
        statistics = {name: dataclasses.replace(s, hessian=diagonal[name]) for name, s in statistics.items()}
    return statistics


def _ranker(loaded: LoadedModel, metric: str, spec: RunSpec) -> Ranker:
    return Ranker(loaded, metric, spec.largest_k, "bottom" in spec.controls, spec.structure, spec.scope)


def _checked(ranker: Ranker, spec: RunSpec) -> Ranking:
    """The finished ranking. Raises InvalidInput where there was nothing to rank."""
    ranking = ranker.ranking()
    if not ranking.weights:
        only = "of linear layers " if ranker.metric.linear_only else ""
        raise InvalidInput(
            f"no parameter {only}in view has a {spec.structure} to rank by {ranking.metric}",
            hint="heads are in attention output projections; vectors have neither rows nor columns",
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


def _sequences(
    loaded: LoadedModel, spec: RunSpec, emit: Emit
) -> tuple[TextUse, list[TokenSequence], list[TokenSequence]]:
    """Scoring and evaluation texts as tokens, and the account of which were used for what."""
    given = corpus.load_texts(spec.data_file, spec.eval_limit, spec.dataset)
    texts = corpus.distinct(given)
    if repeated := len(given) - len(texts):
        emit(Note(f"{repeated} of {len(given)} texts had occurred before and were left out", "warning"))
    scoring_texts, evaluation_texts = corpus.split(texts)
    shared = len(texts) < 2
    if shared:
        emit(Note("there is only one text: weights are scored and damage is measured on the same one", "warning"))
    limit = min(spec.seq_len, loaded.max_tokens or spec.seq_len)
    as_sequences = pack if spec.packed else tokenize
    scoring = as_sequences(loaded.tokenizer, scoring_texts, limit)
    evaluation = as_sequences(loaded.tokenizer, evaluation_texts, limit)
    _check_tokens(loaded, scoring + evaluation)
    truncated = sum(sequence.truncated for sequence in (scoring if shared else scoring + evaluation))
    if truncated:
        emit(Note(f"{truncated} of {len(texts)} texts are longer than {limit} tokens and were cut there", "warning"))
    if spec.fast_perturbation and spec.damages:
        evaluation = evaluation[: max(FAST_LEAST, math.ceil(len(evaluation) / FAST_SHARE))]
    use = TextUse(
        source=spec.dataset or (corpus.BUILTIN if spec.data_file is None else str(spec.data_file)),
        sha256=corpus.data_sha256(given),
        texts=len(texts),
        scoring=len(scoring_texts),
        evaluation=len(evaluation_texts),
        shared=shared,
        truncated=truncated,
        scoring_sha256=corpus.data_sha256(scoring_texts),
        evaluation_sha256=corpus.data_sha256(evaluation_texts),
        repeated=repeated,
        overlap=corpus.overlap(scoring_texts, evaluation_texts),
        packed=spec.packed,
        damage=len(evaluation) if spec.damages else 0,
    )
    return use, scoring, evaluation


def _check_tokens(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> None:
    """On a GPU an index beyond the embedding ends the whole process, so it is looked for before."""
    known = loaded.model.get_input_embeddings().get_parameter("weight").shape[0]
    largest = max(max(sequence.ids) for sequence in sequences)
    if largest >= known:
        raise ModelBroken(
            f"the tokenizer of {loaded.source.name} gives token {largest}, but the model knows only {known}",
            hint="the tokenizer belongs to another model; download or save the two together",
        )


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
