"""`--tasks`: what does the damage do to tasks of lm-evaluation-harness? torch-free until it is measured.

Every document of a task is answered by the intact model, by the model with each critical set damaged, and with draws of its
controls: the same prompts, few-shot examples and order. So scores are compared document by document.

Of a ranking the largest critical set is taken, under every perturbation; of each control the leading draw and the first two
others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, RunFailed
from cwa_engine.base.events import Note, Progress
from cwa_engine.base.p_values import p_text
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import leading_draw, to_plain

if TYPE_CHECKING:
    from cwa_engine.damage.measured import MeasuredComparison
    from cwa_engine.damage.treatments import Treatment
    from cwa_engine.data.harness import HarnessTask
    from cwa_engine.evaluation.answers import Asked
    from cwa_engine.methods.controls import Selection
    from cwa_engine.result import RunResult
    from cwa_engine.rows import DamagePoint
    from cwa_engine.run import RunContext
    from cwa_engine.spec import RunSpec

OTHER_DRAWS = 2  # of each control, beside the leading draw
INTACT, CRITICAL = "intact", "critical"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A row: what a document scores in a case. The columns from `metric` to `seed` are those of a `DamagePoint`.

    `score` is None where the likelihood of an answer is no finite number: a model that collapsed has no score.
    """

    task: str
    measure: str  # the package's name of it: "acc"
    metric: str  # of the ranking; empty for the intact model
    k: int | None
    perturbation: str
    selection: str  # "intact", "critical" or the name of a control
    seed: int | None
    document: int  # the first is 1
    score: float | None


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """The scores of a case beside those of another, document by document; means and difference are None if one collapsed.

    `low` and `high` are a 95 % interval of the difference, `p_value` is that of random signs; docs/tasks.md has both rules.
    """

    task: str
    measure: str
    metric: str
    k: int | None
    perturbation: str
    selection: str
    seed: int | None
    against: str  # "intact", or the name of the control whose leading draw the critical set is compared with
    documents: int
    before: float | None  # mean of what it is compared with
    after: float | None
    difference: float | None  # after - before
    low: float | None
    high: float | None
    p_value: float | None
    lost: int  # documents of which an answer has no finite likelihood


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """How a task was measured."""

    task: str
    version: str  # of the task
    harness: str  # version of lm-evaluation-harness
    kind: str  # "multiple_choice" or "loglikelihood"
    documents: int  # that were answered: the first ones
    available: int
    fewshot: int  # examples before each document, drawn by `seed`
    seed: int
    requests: int
    prompts_sha256: str  # of all contexts and answers, in order
    cut: int  # requests whose context was longer than the model reads, and lost its beginning
    measures: tuple[str, ...]
    left_out: tuple[str, ...]  # measures that are no mean over documents


@dataclass(frozen=True)
class TaskAnswers:
    """The answer."""

    records: tuple[TaskRecord, ...] = ()
    comparisons: tuple[TaskComparison, ...] = ()
    scores: tuple[TaskScore, ...] = dataclasses.field(default=(), repr=False)


@dataclass(frozen=True)
class _Case:
    """A change of weights, as tables name it."""

    metric: str
    k: int | None
    perturbation: str
    selection: str
    seed: int | None
    weights: Selection | None = dataclasses.field(default=None, compare=False)
    treatment: Treatment | None = dataclasses.field(default=None, compare=False)

    @property
    def columns(self) -> tuple[str, int | None, str, str, int | None]:
        return self.metric, self.k, self.perturbation, self.selection, self.seed


@dataclass(frozen=True)
class _Prepared:
    """A task and what the model is asked for it."""

    task: HarnessTask
    asked: tuple[Asked, ...]


Scored = dict[str, list[float | None]]  # measure -> score of each document, in order


def check_tasks(spec: RunSpec, trust_code: bool = False) -> None:
    """Before a model is loaded: whether all tasks are there and can be measured. Raises InvalidInput and DataError."""
    from cwa_engine.data.harness import load_tasks

    load_tasks(spec.tasks, spec.task_path, spec.task_limit, spec.seed, trust_code)


def measure_tasks(run: RunContext, findings: Findings) -> TaskAnswers:
    """Score every task in every case. The weights, and what is random in this process, are as before after it."""
    import torch

    from cwa_engine.data.harness import load_tasks

    spec = run.spec
    with torch.random.fork_rng(devices=[]):
        tasks = load_tasks(spec.tasks, spec.task_path, spec.task_limit, spec.seed, run.trust_code)
        prepared = [_prepared(run, task) for task in tasks]
        cases = [_Case("", None, "", INTACT, None), *_cases(findings.measured)]
        total, done = len(cases) * sum(len(each.asked) for each in prepared), 0
        found: dict[tuple[str, str], dict[_Case, list[float | None]]] = {}
        left_out: dict[str, tuple[str, ...]] = {}
        run.emit(Note(f"tasks: {total:,} answers, for {len(cases)} cases"))
        for case, each in itertools.product(cases, prepared):

            def report(answered: int, before: int = done) -> None:
                run.emit(Progress(QUESTION.stage, before + answered, total, "answer"))

            measures = [measure for task, measure in found if task == each.task.name]
            scores, others = _scored(run, each, case, measures, report)
            done += len(each.asked)
            left_out.setdefault(each.task.name, others)
            for measure, by_document in scores.items():
                found.setdefault((each.task.name, measure), {})[case] = by_document
    return _answers(run, prepared, found, left_out)


def _prepared(run: RunContext, task: HarnessTask) -> _Prepared:
    from cwa_engine.data.prefix import prefix_of
    from cwa_engine.evaluation.answers import asked_tokens

    prefix = prefix_of(run.loaded.tokenizer, run.loaded.model.config.model_type, run.spec.bos)
    return _Prepared(task, tuple(asked_tokens(run.loaded, prefix, *request.args) for request in task.requests))


def _cases(measured: Sequence[MeasuredComparison]) -> Iterator[_Case]:
    """Of each ranking and perturbation the largest critical set, and some draws of each of its controls."""
    sets = [entry for entry in measured if entry.critical and entry.treatment.has_controls]
    largest = {entry.comparison.metric: entry.comparison.k for entry in sets}  # k ascends
    for entry in sets:
        comparison, treatment = entry.comparison, entry.treatment
        if comparison.k != largest[comparison.metric]:
            continue
        group = comparison.metric, comparison.k, treatment.label
        yield _Case(*group, CRITICAL, None, comparison.weights, treatment)
        for control, damaged in entry.draws.items():
            draws = comparison.of(control)
            for draw in (draws[place] for place in chosen_draws([each.point for each in damaged])):
                yield _Case(*group, control, draw.seed, draw.weights, treatment)


def chosen_draws(points: Sequence[DamagePoint]) -> list[int]:
    """With which draws of a control tasks are measured: the leading one and the first others, by their places."""
    leading = points.index(leading_draw(points))
    return [leading, *[place for place in range(len(points)) if place != leading][:OTHER_DRAWS]]


def _scored(
    run: RunContext, prepared: _Prepared, case: _Case, measures: Sequence[str], report: Callable[[int], None]
) -> tuple[Scored, tuple[str, ...]]:
    """(scores by measure, measures that are left out) of a task in a case."""
    from contextlib import nullcontext

    from cwa_engine.damage.patch import patched
    from cwa_engine.evaluation.answers import likelihoods

    loaded = run.loaded
    change = nullcontext()
    if case.weights is not None and case.treatment is not None:
        treatment, offsets = case.treatment, loaded.anatomy.offsets
        change = patched(loaded.model, case.weights, treatment.perturbation, treatment.options, offsets)  # type: ignore[assignment]
    with change:
        found = likelihoods(loaded, prepared.asked, run.batch_size, report)
    lost = {r.doc_id for r, (total, _) in zip(prepared.task.requests, found, strict=True) if math.isnan(total)}
    if lost and case.selection == INTACT:
        raise RunFailed(
            f"the intact model gives {len(lost)} documents of {prepared.task.name} no finite likelihood",
            hint="float16 overflows easily; try --dtype float32 or bfloat16",
        )
    return _measures(prepared.task, found, lost, measures)


def _measures(
    task: HarnessTask, found: Sequence[tuple[float, bool]], lost: set[int], measures: Sequence[str]
) -> tuple[Scored, tuple[str, ...]]:
    """What the task makes of the answers, for each document: None for those that are lost.

    `measures` are those of the intact model; without them, for the intact model itself, all that every document has.
    """
    from cwa_engine.data.harness import results_of

    by_document, others = results_of(task, found, lost)
    wanted = measures or [
        name for name in by_document[0] or () if all(results and name in results for results in by_document)
    ]
    if not wanted:
        raise InvalidInput(f"task {task.name} gives no measure to every document", hint="take another task")
    scores = {name: [None if results is None else results.get(name) for results in by_document] for name in wanted}
    return scores, others


def _answers(
    run: RunContext,
    prepared: Sequence[_Prepared],
    found: Mapping[tuple[str, str], Mapping[_Case, list[float | None]]],
    left_out: Mapping[str, tuple[str, ...]],
) -> TaskAnswers:
    scores = [
        TaskScore(task, measure, *case.columns, document + 1, score)
        for (task, measure), by_case in found.items()
        for case, by_document in by_case.items()
        for document, score in enumerate(by_document)
    ]
    records = []
    for each in prepared:
        measures = tuple(measure for task, measure in found if task == each.task.name)
        records.append(_record(run, each, measures, left_out[each.task.name]))
    return TaskAnswers(tuple(records), tuple(comparisons(scores, run.spec.seed)), tuple(scores))


def _record(run: RunContext, prepared: _Prepared, measures: tuple[str, ...], left_out: tuple[str, ...]) -> TaskRecord:
    from cwa_engine.data.harness import harness_version

    task = prepared.task
    prompts = json.dumps([list(request.args) for request in task.requests], ensure_ascii=False)
    return TaskRecord(
        task=task.name,
        version=task.version,
        harness=harness_version(),
        kind=task.task.OUTPUT_TYPE,
        documents=len(task.documents),
        available=task.available,
        fewshot=task.fewshot,
        seed=run.spec.seed,
        requests=len(task.requests),
        prompts_sha256=hashlib.sha256(prompts.encode()).hexdigest(),
        cut=sum(each.read.truncated for each in prepared.asked),
        measures=measures,
        left_out=left_out,
    )


_Columns = tuple[str, int | None, str, str, int | None]  # metric, k, perturbation, selection and seed of a case


def comparisons(scores: Sequence[TaskScore], seed: int) -> Iterator[TaskComparison]:
    """Every case beside the intact model, and every critical set beside the leading draw of each of its controls.

    By the rows of tasks.csv alone, so that they can be made again from it.
    """
    by_case: dict[tuple[str, str], dict[_Columns, list[float | None]]] = {}
    for row in scores:
        case = row.metric, row.k, row.perturbation, row.selection, row.seed
        by_case.setdefault((row.task, row.measure), {}).setdefault(case, []).append(row.score)
    for (task, measure), cases in by_case.items():
        intact = next(values for case, values in cases.items() if case[3] == INTACT)
        known = [value for values in cases.values() for value in values if value is not None]
        low, high = min(known, default=0.0), max(known, default=1.0)
        scale = 1.0 if 0 <= low <= high <= 1 else high - low
        for case, values in cases.items():
            if case[3] != INTACT:
                yield _compared(task, measure, case, values, INTACT, intact, scale, seed)
            if case[3] == CRITICAL:
                drawn: dict[str, list[float | None]] = {}
                for other, theirs in cases.items():
                    if other[:3] == case[:3] and other != case:
                        drawn.setdefault(other[3], theirs)
                for control, theirs in drawn.items():
                    yield _compared(task, measure, case, values, control, theirs, scale, seed)


def _compared(
    task: str, measure: str, case: _Columns, values: Sequence[float | None], against: str,
    others: Sequence[float | None], scale: float, seed: int,
) -> TaskComparison:  # fmt: skip
    before, after = _mean(others), _mean(values)
    difference = low = high = p_value = None
    if before is not None and after is not None:
        import numpy as np  # 0.1 s, which whoever only reads results need not wait

        from cwa_engine.base.statistics import paired_mean, sign_flip_p

        pairs = np.array(values, dtype=np.float64) - np.array(others, dtype=np.float64)
        difference, low, high = paired_mean(pairs, scale)
        p_value = sign_flip_p(pairs, seed)
    lost = sum(value is None for value in values)
    metric, k, perturbation, selection, draw = case
    return TaskComparison(
        task=task,
        measure=measure,
        metric=metric,
        k=k,
        perturbation=perturbation,
        selection=selection,
        seed=draw,
        against=against,
        documents=len(values),
        before=before,
        after=after,
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        lost=lost,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """None where the model has collapsed on a document: what is left would be a mean of other documents."""
    import numpy as np

    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def tasks_sentence(rows: Sequence[TaskComparison]) -> str:
    """What the first critical set does to each task, beside the intact model and the control at its strongest."""
    said = []
    for (task, measure), members in itertools.groupby(rows, key=lambda row: (row.task, row.measure)):
        group = list(members)
        first = next((row for row in group if row.selection == CRITICAL and row.against == INTACT), None)
        if first is None:
            continue
        if first.difference is None or first.before is None or first.after is None:
            said.append(
                f"{task}, {measure}: the damaged model has collapsed on {first.lost} of {first.documents} documents"
            )
            continue
        key = first.metric, first.k, first.perturbation
        controls = [
            row.difference for row in group
            if (row.metric, row.k, row.perturbation) == key and row.selection != CRITICAL and row.difference is not None
        ]  # fmt: skip
        most = (
            f"; the draws of controls that answered change it by at most {max(map(abs, controls)):.3f}"
            if controls
            else ""
        )
        said.append(
            f"{task}, {measure}: {first.before:.3f} intact, {first.after:.3f} with {first.k} weights by {first.metric} damaged "
            f"({first.perturbation}), {first.difference:+.3f} [{first.low:+.3f}, {first.high:+.3f}], {p_text(first.p_value)} "
            f"on {first.documents} documents{most}"
        )
    return " · ".join(said)


TABLE = Table("tasks.csv", TaskScore)


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if found := result.get(TaskAnswers):
        yield TableRows(TABLE, found.scores)


def _summary(result: RunResult) -> JsonMap:
    found = result.get(TaskAnswers) or TaskAnswers()
    return {"tasks": to_plain(found.records), "task_comparisons": to_plain(found.comparisons)}


QUESTION = StageQuestion(
    name="tasks",
    place=900,
    asks="What does the damage do to tasks of lm-evaluation-harness?",
    asked=lambda spec: bool(spec.tasks),
    ready=check_tasks,
    stage="tasks",
    moment=Moment.DAMAGED,
    answer=measure_tasks,
    tables=_tables,
    summary=_summary,
    sentence=lambda answers: tasks_sentence(answers.comparisons),
)
