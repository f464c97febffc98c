"""A run from texts to result; the stages in reading order."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

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
from cwa_engine.result import GIVEN, Baseline, Ranking, RunResult, TextUse
from cwa_engine.sensitivity.fidelity import Sample, draw_sample, fidelities, measure_predictions
from cwa_engine.sensitivity.gradients import SoFar, Statistics, resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.metrics import ABLATION, METRICS, Needs, needs_of
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


@dataclass(frozen=True)
class Run:
    """What every stage of a run needs."""

    loaded: LoadedModel
    spec: RunSpec
    emit: Emit
    stages: Stages
    batch_size: BatchSize


def analyze(loaded: LoadedModel, spec: RunSpec, emit: Emit = ignore) -> RunResult:
    """Rank the critical weights of `loaded`, damage them, measure what follows.

    Raises DataError, InvalidInput, ModelBroken, OutOfMemory or RunFailed; whatever is raised, the weights are as before.
    """
    with _out_of_memory_named(loaded, spec):
        all_weights = loaded.anatomy.numel
        loaded = dataclasses.replace(loaded, anatomy=loaded.anatomy.only(spec.include, spec.exclude))
        given = given_ranking(loaded, spec)
        _check_bits(loaded, spec)
        _check_topk(loaded, spec)
        use, scoring, evaluation = _sequences(loaded, spec, emit)
        batch_size = BatchSize(spec.batch_size or loaded.default_batch_size, lambda text: emit(Note(text, "warning")))
        run = Run(loaded, spec, emit, Stages(emit), batch_size)

        with run.stages("baseline"):
            intact, baseline = measure_baseline(run, evaluation)
        scored, sample = scored_rankings(run, scoring)
        by_metric = {ranking.metric: shortened(ranking, spec.largest_k) for ranking in scored}
        rankings = (*given, *(by_metric[name] for name in spec.metrics if name in by_metric))
        for ranking in rankings:
            emit(TopK(ranking.metric, False, ranking.weights[:PREVIEW_ROWS]))
        result = RunResult(all_weights, loaded.anatomy.numel, use, baseline, rankings)
        ablated = None
        if ABLATION in spec.metrics:
            with run.stages("ablate"):
                ablated = ablate(loaded, scoring, propose(scored, spec.candidates), spec.largest_k, spec.seed, emit)
            result = with_ablation(result, ablated)
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

    return dataclasses.replace(result, timings=run.stages.timings, peak_memory_bytes=peak_memory_bytes(loaded))


def scored_rankings(run: Run, sequences: Sequence[TokenSequence]) -> tuple[list[Ranking], Sample | None]:
    """The rankings by scores, as long as anybody needs them; and the sample for fidelity where it is asked for."""
    spec, sample = run.spec, None
    rankers = [_ranker(run.loaded, name, spec) for name in spec.scored_metrics]
    with run.stages("score"):
        for statistics in score(run, sequences):  # of all weights, or of one block after the other
            for ranker in rankers:
                ranker.offer(statistics)
            if spec.fidelity:
                sample = draw_sample(run.loaded, statistics, spec)
            del statistics  # what follows needs the room
    with run.stages("select"):
        return [_checked(ranker, spec) for ranker in rankers], sample


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


def measure_baseline(run: Run, sequences: Sequence[TokenSequence]) -> tuple[Evaluation, Baseline]:
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
    baseline = baseline_of(intact, sequences, run.spec.seq_len, run.spec.packed)
    run.emit(BaselineMeasured(baseline))
    return intact, baseline


def score(run: Run, sequences: Sequence[TokenSequence], stage: str = "score") -> Iterator[Statistics]:
    """What the metrics need, over the scoring texts: of all weights at once, or of one block after the other."""
    needs = needs_of(run.spec.scored_metrics)
    if sweeps(run.loaded, run.spec, needs):

        def begin(size: int) -> tuple[Statistics, Iterator[Statistics]]:
            parts = sweep(run.loaded, sequences, needs, size, lambda d, n: run.emit(Progress(stage, d, n, "block")))
            return next(parts), parts

        try:
            first, others = run.batch_size.run(begin)
        except NotAChain as reason:
            run.emit(Note(f"the gradients of all weights are kept at once: {reason}", "warning"))
        else:
            yield first
            del first
            yield from others
            return
    yield score_at_once(run, sequences, needs, stage)


def sweeps(loaded: LoadedModel, spec: RunSpec, needs: Needs) -> bool:
    """Whether gradients are made block by block: where that was asked for, or where all of them do not fit."""
    if spec.gradients != "auto":
        return spec.gradients == "sweep" and needs is not Needs.NOTHING
    return not (spec.fidelity or Needs.HESSIAN in needs or fits_resident(loaded, needs))


def score_at_once(run: Run, sequences: Sequence[TokenSequence], needs: Needs, stage: str) -> Statistics:
    """The statistics of all weights; a partial ranking is shown after 1, 4, 16 ... batches."""
    batches_done, next_preview = 0, 1

    def after_batch(done: int, so_far: SoFar) -> None:
        nonlocal batches_done, next_preview
        batches_done += 1
        run.emit(Progress(stage, done, len(sequences), "sequence"))
        if stage == "score" and batches_done == next_preview and done < len(sequences):
            next_preview *= 4  # a preview costs about 0.1 s on 135M weights: few of them, while all is young
            statistics = so_far()
            rows = min(run.spec.largest_k, PREVIEW_ROWS)
            for name in run.spec.scored_metrics:
                if METRICS[name].needs & _UNKNOWN_SO_FAR:
                    continue
                ranking = rank(run.loaded, statistics, name, rows, structure=run.spec.structure, scope=run.spec.scope)
                run.emit(TopK(name, True, ranking.weights[:PREVIEW_ROWS]))

    if needs is not Needs.NOTHING:
        run.emit(Progress(stage, 0, len(sequences), "sequence"))
    statistics = run.batch_size.run(lambda size: resident(run.loaded, sequences, needs, size, after_batch))
    if Needs.HESSIAN in needs:

        def report(done: int) -> None:
            run.emit(Progress(stage, done, len(sequences), "sequence"))

        diagonal = hutchinson_diagonal(run.loaded, sequences, run.spec.probes, run.spec.seed, report)
        statistics = {name: dataclasses.replace(s, hessian=diagonal[name]) for name, s in statistics.items()}
    return statistics


def _ranker(loaded: LoadedModel, metric: str, spec: RunSpec) -> Ranker:
    k = max(spec.largest_k, spec.candidates) if ABLATION in spec.metrics else spec.largest_k
    return Ranker(loaded, metric, min(k, loaded.anatomy.numel), "bottom" in spec.controls, spec.structure, spec.scope)


def shortened(ranking: Ranking, k: int) -> Ranking:
    """The ranking down to place k, where more was wanted for other purposes."""
    return dataclasses.replace(ranking, weights=ranking.top(k))


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
