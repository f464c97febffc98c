"""A run from texts to result; the stages in reading order."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from cwa_engine.data import corpus
from cwa_engine.data.tokens import TokenSequence, tokenize
from cwa_engine.errors import InvalidInput, ModelBroken, OutOfMemory, RunFailed
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
    ignore,
)
from cwa_engine.models.loading import LoadedModel, is_out_of_memory
from cwa_engine.perturbation.damage import check_restored, measure_damage
from cwa_engine.result import Baseline, DamagePoint, Ranking, RunResult, Separation, TextUse
from cwa_engine.sensitivity.gradients import SoFar, Statistics, resident
from cwa_engine.sensitivity.metrics import Needs, needs_of
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec

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
        use, scoring, evaluation = _sequences(loaded, spec, emit)
        _check_topk(loaded, spec)

        with stages("baseline"):
            intact, baseline = measure_baseline(loaded, evaluation, spec, emit)
        with stages("score"):
            statistics = score(loaded, scoring, spec, emit)
        with stages("select"):
            rankings = select(loaded, statistics, spec, emit)
        del statistics  # gradients of every parameter; the damage needs the room

        damage: tuple[DamagePoint, ...] = ()
        separations: tuple[Separation, ...] = ()
        drift = None
        if spec.perturbations:
            with stages("perturb"):
                damage, separations = measure_damage(loaded, evaluation, intact, rankings, spec, emit)
                drift = check_restored(loaded, evaluation, intact, spec)

    return RunResult(
        parameters=loaded.anatomy.numel,
        texts=use,
        baseline=baseline,
        rankings=rankings,
        damage=damage,
        separations=separations,
        baseline_drift=drift,
        timings=stages.timings,
        peak_memory_bytes=peak_memory_bytes(loaded),
    )


def measure_baseline(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], spec: RunSpec, emit: Emit
) -> tuple[Evaluation, Baseline]:
    """The intact model on the evaluation texts. Raises RunFailed where its loss is not finite."""

    def report(done: int) -> None:
        emit(Progress("baseline", done, len(sequences), "sequence"))

    report(0)
    intact = evaluate(loaded, sequences, spec.batch_size, report)
    if not math.isfinite(intact.nll):
        raise RunFailed(
            f"the intact model's loss is {intact.nll} on the evaluation texts",
            hint="float16 overflows easily; try --dtype float32 or bfloat16",
        )
    baseline = baseline_of(intact, sequences, spec.seq_len)
    emit(BaselineMeasured(baseline))
    return intact, baseline


def score(loaded: LoadedModel, sequences: Sequence[TokenSequence], spec: RunSpec, emit: Emit) -> Statistics:
    """Gradient statistics over the scoring texts, with a partial ranking shown after 1, 4, 16 ... batches."""
    needs = needs_of(spec.metrics)
    if needs is Needs.NOTHING:
        return resident(loaded, sequences, needs, spec.batch_size)
    batches_done, next_preview = 0, 1

    def after_batch(done: int, so_far: SoFar) -> None:
        nonlocal batches_done, next_preview
        batches_done += 1
        emit(Progress("score", done, len(sequences), "sequence"))
        if batches_done == next_preview and done < len(sequences):
            next_preview *= 4  # a preview costs about 0.1 s on 135M weights: few of them, while all is young
            statistics = so_far()
            rows = min(spec.largest_k, PREVIEW_ROWS)
            for name in spec.metrics:
                emit(TopK(name, True, rank(loaded, statistics, name, rows).weights))

    emit(Progress("score", 0, len(sequences), "sequence"))
    return resident(loaded, sequences, needs, spec.batch_size, after_batch)


def select(loaded: LoadedModel, statistics: Statistics, spec: RunSpec, emit: Emit) -> tuple[Ranking, ...]:
    """The exact ranking of each metric over all weights."""
    rankings = []
    for name in spec.metrics:
        rankings.append(rank(loaded, statistics, name, spec.largest_k, with_lowest="bottom" in spec.controls))
        emit(TopK(name, False, rankings[-1].weights[:PREVIEW_ROWS]))
    return tuple(rankings)


def _sequences(
    loaded: LoadedModel, spec: RunSpec, emit: Emit
) -> tuple[TextUse, list[TokenSequence], list[TokenSequence]]:
    """Scoring and evaluation texts as tokens, and the account of which were used for what."""
    texts = corpus.load_texts(spec.data_file, spec.eval_limit)
    scoring_texts, evaluation_texts = corpus.split(texts)
    shared = len(texts) < 2
    if shared:
        emit(Note("there is only one text: weights are scored and damage is measured on the same one", "warning"))
    limit = min(spec.seq_len, loaded.max_tokens or spec.seq_len)
    scoring = tokenize(loaded.tokenizer, scoring_texts, limit)
    evaluation = tokenize(loaded.tokenizer, evaluation_texts, limit)
    _check_tokens(loaded, scoring + evaluation)
    truncated = sum(sequence.truncated for sequence in (scoring if shared else scoring + evaluation))
    if truncated:
        emit(Note(f"{truncated} of {len(texts)} texts are longer than {limit} tokens and were cut there", "warning"))
    if spec.fast_perturbation and spec.perturbations:
        evaluation = evaluation[: max(FAST_LEAST, math.ceil(len(evaluation) / FAST_SHARE))]
    use = TextUse(
        source=corpus.BUILTIN if spec.data_file is None else str(spec.data_file),
        sha256=corpus.data_sha256(texts),
        texts=len(texts),
        scoring=len(scoring),
        evaluation=len(evaluation_texts),
        shared=shared,
        truncated=truncated,
        damage=len(evaluation) if spec.perturbations else 0,
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
    if spec.largest_k > loaded.anatomy.numel:
        raise InvalidInput(
            f"--topk {spec.largest_k} is more than the {loaded.anatomy.numel:,} weights of {spec.model}",
            hint="a critical set is small: try 100",
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
