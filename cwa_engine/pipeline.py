"""A run from texts to result; the stages in reading order."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from cwa_engine.base.errors import OutOfMemory, RunFailed
from cwa_engine.base.events import (
    PREVIEW_ROWS,
    BaselineMeasured,
    Emit,
    Note,
    TopK,
    VerdictReached,
    ignore,
)
from cwa_engine.damage.curves import control_rows, measure_damage, sequence_rows
from cwa_engine.damage.measurement import NUDGES, check_restored, prepare_measurement, with_rounding
from cwa_engine.damage.separation import separations, verdicts
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.loss_scale import LossScale
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.evaluation.perplexity import baseline_of, evaluate
from cwa_engine.models.anatomy import config_number
from cwa_engine.models.determinism import exact_kernels
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.fan_out import trace_norms
from cwa_engine.models.loading import LoadedModel
from cwa_engine.planning import choose
from cwa_engine.preconditions import check_spec, given_ranking
from cwa_engine.questions.question import Findings, Moment, StageQuestion
from cwa_engine.questions.registry import all_treatments, asked_at, asked_of_damage
from cwa_engine.result import RunResult
from cwa_engine.rows import Baseline, Ranking, TextUse
from cwa_engine.run import RunContext, Stages
from cwa_engine.sensitivity.ranking import shortened
from cwa_engine.sensitivity.rankings import half_overlaps, ranked_parameters, scored_rankings, stored_parameters
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.sensitivity.views import views
from cwa_engine.spec import RunSpec
from cwa_engine.text_use import use_texts


def analyze(
    loaded: LoadedModel,
    spec: RunSpec,
    emit: Emit = ignore,
    cache: ScoreCache | None = None,
    texts: Sequence[str] | None = None,
    trust_code: bool = False,
) -> RunResult:
    """Rank the critical weights of `loaded`, damage them, measure what follows. What is in `cache` is not scored again.

    The texts are `texts` where they are given, else those that the spec names. `trust_code`: code that comes with files may be
    run.

    Raises DataError, InvalidInput, ModelBroken, OutOfMemory or RunFailed; whatever is raised, the weights are as before.
    """
    with _out_of_memory_named(loaded, spec), exact_kernels(loaded, lambda text: emit(Note(text, "warning"))):
        stages = Stages(emit)
        with stages("texts"):
            used, run = read_texts(loaded, spec, emit, stages, texts)
            run = dataclasses.replace(run, trust_code=trust_code)
        with stages("baseline"):
            intact, baseline = measure_baseline(run, used.evaluation, used.use)
        findings = rank_weights(run, used, baseline, cache)
        for question in asked_at(Moment.RANKED, spec):
            findings = ask(question, run, findings)
        if spec.damages or asked_at(Moment.DAMAGED, spec):
            findings = prepare(run, findings, used, intact)
            if spec.damages:
                with stages("perturb"):
                    findings = damage_critical_sets(run, findings)
            for question in asked_at(Moment.DAMAGED, spec):
                findings = ask(question, run, findings)
            with stages("check"):
                findings = check_weights(run, findings)
    return dataclasses.replace(
        findings.result,
        parameters=loaded.anatomy.numel,
        ranked=tuple(ranked_parameters(run.loaded, findings.result.rankings)),
        stored=tuple(stored_parameters(run.loaded, findings.result.rankings)),
        layers=loaded.anatomy.blocks,
        gradients=run.gradients,
        batch_size=run.batch_size.size,
        timings=stages.timings,
        peak_memory_bytes=peak_memory_bytes(loaded),
    )


@dataclass(frozen=True)
class Texts:
    """The texts that weights are scored by, those that damage is measured on, and what a manifest says of both."""

    scoring: Sequence[TokenSequence]
    evaluation: Sequence[TokenSequence]
    use: TextUse


def read_texts(
    loaded: LoadedModel, spec: RunSpec, emit: Emit, stages: Stages, texts: Sequence[str] | None
) -> tuple[Texts, RunContext]:
    """The texts as tokens, and how the run goes over them by the memory there is."""
    for note in loaded.notes:  # a warm model says them again: they belong to every result
        emit(Note(note, "warning"))
    trace_norms(loaded)  # of the whole model, and while no activations are recorded
    loaded = dataclasses.replace(loaded, anatomy=loaded.anatomy.only(spec.include, spec.exclude))
    check_spec(loaded, spec)
    use, scoring, evaluation = use_texts(loaded, spec, emit, texts)
    choice = choose(loaded, spec, scoring)
    if choice.why:
        emit(Note(choice.why, choice.level))

    def warn(text: str) -> None:
        emit(Note(text, "warning"))

    batch_size, loss_scale = BatchSize(choice.batch_size, warn), LossScale(loaded.model, warn)
    run = RunContext(loaded, spec, emit, stages, batch_size, choice.gradients, loss_scale, choice.halves)
    return Texts(scoring, evaluation, use), run


def measure_baseline(run: RunContext, sequences: Sequence[TokenSequence], use: TextUse) -> tuple[Evaluation, Baseline]:
    """The intact model on the evaluation texts. Raises RunFailed where its loss is not finite."""
    report = run.reporter("baseline", len(sequences))
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


def rank_weights(run: RunContext, texts: Texts, baseline: Baseline, cache: ScoreCache | None) -> Findings:
    """The weights given by name, and those that metrics rank first."""
    loaded, spec = run.loaded, run.spec
    scored, sample, scores_from = scored_rankings(run, texts.scoring, cache)
    asked = {view.label for view in views(loaded, spec, spec.metrics)}
    shown = [shortened(ranking, spec.largest_k) for ranking in scored if ranking.metric in asked]
    rankings = (*given_ranking(loaded, spec), *shown)
    for ranking in rankings:
        _show(run, ranking)
    result = RunResult(
        parameters=loaded.anatomy.numel,
        eligible=loaded.anatomy.numel,
        texts=texts.use,
        baseline=baseline,
        rankings=rankings,
        halves=tuple(half_overlaps(loaded, rankings, spec)),
        scores_from=scores_from,
    )
    return Findings(texts.scoring, {ranking.metric: ranking for ranking in scored}, sample, result)


def _show(run: RunContext, ranking: Ranking) -> None:
    run.emit(TopK(ranking.metric, False, ranking.weights[:PREVIEW_ROWS]))


def ask(question: StageQuestion, run: RunContext, findings: Findings) -> Findings:
    """The findings with the answer to a question, in its stage."""
    with run.stages(question.stage):
        answer = question.answer(run, findings)
        if sentence := question.sentence(answer):
            run.emit(Note(sentence))
        before = findings.result.rankings
        result = dataclasses.replace(findings.result.with_answer(answer), rankings=question.rankings(answer, before))
        for ranking in result.rankings[len(before) :]:
            _show(run, ranking)
    return dataclasses.replace(findings, result=result)


def prepare(run: RunContext, findings: Findings, texts: Texts, intact: Evaluation) -> Findings:
    """The findings with what measurements of changed weights need: states of the intact model, and the numerical floor."""
    loaded, spec, sequences = run.loaded, run.spec, texts.evaluation
    with run.stages("prepare"):
        report = run.reporter("prepare", len(sequences))
        context = prepare_measurement(loaded, sequences, intact, spec, run.batch_size, report)
    if findings.result.rankings:
        with run.stages("rounding"):
            report = run.reporter("rounding", NUDGES * len(context.sample_places))
            context = with_rounding(context, findings.result.rankings[0], spec.largest_k, report)
    return dataclasses.replace(findings, context=context)


def damage_critical_sets(run: RunContext, findings: Findings) -> Findings:
    """The findings with every critical set and control measured, and compared."""
    spec, context, result = run.spec, findings.measurement, findings.result
    side_cases = [question.side_cases for question in asked_of_damage(spec)]
    measured = measure_damage(context, result.rankings, all_treatments(spec, run.loaded.dtype), side_cases, run.emit)
    rows = separations(context.reference, measured)
    sentences = verdicts(context.reference, result.baseline, measured, rows)
    for verdict in sentences:
        run.emit(VerdictReached(verdict))
    result = dataclasses.replace(
        result,
        damage=tuple(damaged.point for entry in measured for damaged in entry.damaged),
        separations=tuple(rows),
        verdicts=tuple(sentences),
        controls=control_rows(
            context.loaded.anatomy.parameters, (entry.comparison for entry in measured if entry.draws)
        ),
        evaluations=tuple(sequence_rows(context, measured)),
    )
    return dataclasses.replace(findings, result=result, measured=tuple(measured))


def check_weights(run: RunContext, findings: Findings) -> Findings:
    """The findings with the numerical floor, once the intact model is measured again. Raises WeightsNotRestored."""
    context = findings.measurement
    floor = check_restored(
        context, run.reporter("check", len(context.sample_places)), lambda text: run.emit(Note(text, "warning"))
    )
    return dataclasses.replace(findings, result=dataclasses.replace(findings.result, floor=floor))


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
    """Largest memory so far: of the device on an accelerator, summed over several; of this process on a CPU."""
    if loaded.device.type == "cuda":
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in loaded.devices)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
