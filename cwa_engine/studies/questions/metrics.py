"""`metrics`: which metric predicts best what a weight is worth, and which is worth its cost? torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.overlap import Stratum, overlap_by_chance
from cwa_engine.base.p_values import LEVEL
from cwa_engine.base.table import Table
from cwa_engine.methods.metrics import ABLATION, METRICS, Passes
from cwa_engine.questions.question import TableRows
from cwa_engine.rows import SAMPLED_TOP
from cwa_engine.studies.analysis.consistency import concordance, least_blocks
from cwa_engine.studies.analysis.fidelities import Estimate, Sampled, advantage, correlation, estimate, over_models
from cwa_engine.studies.analysis.series import model_of, values_of
from cwa_engine.studies.analysis.side_by_side import AGREEMENTS, DAMAGE, agreements, damage_findings, metric_damage
from cwa_engine.studies.analysis.words import counted, figure, listed
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study, cells_of

LEAST_SAMPLE = 2 * SAMPLED_TOP
RULE = (
    "Each run zeroes a sample of weights one by one (--fidelity); the fidelity of a metric is Spearman's rank correlation of "
    "its scores with the measured |changes of the loss|, with a jackknife interval over the weights, on Fisher's z. Two "
    "metrics are compared on the weights that both rank, by the jackknife of the difference of their correlations. Over "
    "several models figures are means over these models; runs of one model are taken to have the same error. A metric is "
    "clearly worse than the best where the 95 % interval of the difference, widened for all pairs of metrics (Bonferroni), is "
    "above 0. Of those that are not, the one that takes the least work is to be used: passes over the scoring texts, a "
    "backward pass counted as two; of equal work the one with the highest correlation. Nothing is recommended where the best "
    "correlation is not clearly above 0. Models agree on the order of the metrics where Kendall's W has p <= "
    f"{LEVEL} among random orders."
)


@dataclass(frozen=True, slots=True)
class MetricFidelity:
    """How well a metric predicts the damage that was measured in one run: a bar of the figure.

    `spearman` is None where it is not defined. `found` of the `top` most harmful weights of the sample are among its first
    `top`; random sets have `found_by_chance`, and at least as many with probability `found_p`.
    """

    cell: int
    model: str
    metric: str
    forward: int
    backward: int
    work: int  # in forward passes over the scoring texts
    weights: int
    spearman: float | None
    low: float | None
    high: float | None
    top: int
    found: int
    found_by_chance: float
    found_p: float


@dataclass(frozen=True, slots=True)
class FidelityDifference:
    """How much better the best metric predicts than another, over all runs; the interval is one of all pairs together."""

    best: str
    metric: str
    weights: int  # that both rank, in the run that has the fewest
    difference: float
    low: float
    high: float
    clearly_worse: bool


FIDELITY = Table("metrics.csv", MetricFidelity)
DIFFERENCES = Table("metric_fidelity.csv", FidelityDifference)


@dataclass(frozen=True)
class Choice:
    """Which metric is to be used, by `RULE`."""

    best: str
    chosen: str
    fidelity: Mapping[str, Estimate]  # of each metric, over the models
    differences: tuple[FidelityDifference, ...]

    @property
    def good_enough(self) -> list[str]:
        return [self.best, *(row.metric for row in self.differences if not row.clearly_worse)]


def answer(runs: Sequence[StudyRun]) -> Answer:
    """Fidelity, agreement, damage and cost of metrics, and which to use, see `RULE`."""
    rows = [row for run in runs for row in _fidelities(run)]
    damage = [row for run in runs for row in metric_damage(run)]
    agreed = [row for run in runs for row in agreements(run)]
    choice, refused = _choice(runs)
    findings = [*_fidelity_findings(rows), *_order_finding(runs, choice), *damage_findings(damage)]
    return Answer(
        "metrics",
        _sentence(choice, runs) if choice else "which metric to use is not concluded: " + refused[0],
        findings=tuple(findings),
        tables=(
            TableRows(FIDELITY, rows),
            TableRows(DIFFERENCES, choice.differences if choice else ()),
            TableRows(AGREEMENTS, agreed),
            TableRows(DAMAGE, damage),
        ),
        refused=(*refused, *_refused(runs, choice)),
        rule=RULE,
    )


# fidelity


def _passes(metric: str, run: StudyRun) -> Passes:
    return METRICS[metric].passes(run.report.spec.probes)


def _fidelities(run: StudyRun) -> Iterator[MetricFidelity]:
    sampled = Sampled.of(run.report)
    for row in run.report.fidelity:
        passes = _passes(row.metric, run)
        value, low, high = correlation(sampled, row.metric) or (None, None, None)
        chance = overlap_by_chance(row.overlap, [Stratum(row.units, row.top, row.top)])
        yield MetricFidelity(
            run.cell.number, model_of(run), row.metric, passes.forward, passes.backward, passes.work, row.units,
            value, low, high, row.top, row.overlap, chance.expected, chance.p_value,
        )  # fmt: skip


def _samples(runs: Sequence[StudyRun]) -> list[list[Sampled]]:
    """The measured weights of each model's runs."""
    found: dict[str, list[Sampled]] = {}
    for run in runs:
        if run.report.fidelity:
            found.setdefault(model_of(run), []).append(Sampled.of(run.report))
    return list(found.values())


def _choice(runs: Sequence[StudyRun]) -> tuple[Choice | None, list[str]]:
    """(the metric to use, or why none is named)"""
    samples = _samples(runs)
    if not samples:
        return None, ["no run has measured what single weights cost (--fidelity)"]
    names = [n for n in samples[0][0].scores if all(n in one.scores for of in samples for one in of)]
    fidelity = {name: found for name in names if (found := _over(samples, partial(estimate, metric=name)))}
    if len(fidelity) < 2:
        return None, ["fewer than two metrics have a rank correlation with the damage measured in every run"]
    best = max(fidelity, key=lambda name: fidelity[name].value)
    if not (interval := fidelity[best].interval(len(fidelity)))[1] > 0:
        said = f"no metric's scores are clearly related to the damage that was measured; the best, {best}, has a rank "
        return None, [said + f"correlation of {figure(*interval)}, for {counted(len(fidelity), 'metric')} together"]
    pairs = len(fidelity) * (len(fidelity) - 1) // 2
    differences = []
    for name in fidelity:
        if name == best:
            continue
        found = _over(samples, partial(advantage, first=best, second=name))
        if found is None:
            return None, [f"{best} and {name} rank fewer than ten of the measured weights in common"]
        difference, low, high = found.interval(pairs)
        differences.append(FidelityDifference(best, name, found.weights, difference, low, high, low > 0))
    good = [best, *(row.metric for row in differences if not row.clearly_worse)]
    work = {name: max(_passes(name, run).work for run in runs) for name in good}
    chosen = min(good, key=lambda name: (work[name], -fidelity[name].value))
    return Choice(best, chosen, fidelity, tuple(differences)), []


def _over(samples: Sequence[Sequence[Sampled]], of_run: Callable[[Sampled], Estimate | None]) -> Estimate | None:
    """The mean over models; None where one run has no figure."""
    found = [[of_run(one) for one in of_model] for of_model in samples]
    known = [[one for one in of_model if one is not None] for of_model in found]
    return over_models(known) if known == found else None


# words


def _sentence(choice: Choice, runs: Sequence[StudyRun]) -> str:
    chosen, rows = choice.chosen, {row.metric: row for row in choice.differences}
    models = list(dict.fromkeys(model_of(run) for run in runs if run.report.fidelity))
    where = f"over {counted(len(models), 'model')}" if len(models) > 1 else f"in {models[0]}"
    value = figure(*choice.fidelity[chosen].interval())
    said = f"use {chosen} ({_passes(chosen, runs[0])} over the scoring texts): {where} its scores have a rank "
    said += f"correlation of {value} with the damage that was measured"
    if chosen != choice.best:
        row = rows[chosen]
        said += f"; {choice.best}, which takes {_passes(choice.best, runs[0])}, is not clearly better "
        said += f"({figure(row.difference, row.low, row.high)})"
    ties = [name for name in choice.good_enough if name not in (chosen, choice.best)]
    if ties:
        said += f"; nor is any difference clear between {choice.best} and {listed(ties)}"
    if worse := [row for row in choice.differences if row.clearly_worse]:
        said += f"; clearly worse: {listed([f'{row.metric} by {figure(row.difference, row.low, row.high)}' for row in worse])}"
    return said


def _fidelity_findings(rows: Sequence[MetricFidelity]) -> Iterator[Finding]:
    """One for each metric, over all runs."""
    for metric in dict.fromkeys(row.metric for row in rows):
        mine = [row for row in rows if row.metric == metric and row.spearman is not None]
        if not mine:
            continue
        each = listed([f"{figure(*_numbers(row))} in {row.model}" for row in mine[:4]])
        more = f", and so on in {len(mine)} runs" if len(mine) > 4 else ""
        found, top = sum(row.found for row in mine), sum(row.top for row in mine)
        chance = sum(row.found_by_chance for row in mine)
        yield Finding(
            f"{metric}: rank correlation {each}{more}; of the {top} most harmful weights that were measured {found} are among "
            f"its first, {chance:.1f} by chance",
            f"other weights (--seed draws a sample anew) or other texts, with a correlation outside of the interval; "
            f"{min(row.weights for row in mine)} weights were measured",
        )


def _numbers(row: MetricFidelity) -> tuple[float, float, float]:
    assert row.spearman is not None and row.low is not None and row.high is not None
    return row.spearman, row.low, row.high


def _order_finding(runs: Sequence[StudyRun], choice: Choice | None) -> Iterator[Finding]:
    """Whether models agree on the order of metrics, where they are enough to tell."""
    samples, names = _samples(runs), list(choice.fidelity) if choice else []
    if len(samples) < 2 or len(samples) < least_blocks(len(names)):
        return
    values = [
        [np.mean([of.value for one in runs_of if (of := estimate(one, name))]) for name in names] for runs_of in samples
    ]
    found = concordance(np.array(values))
    if found is None:
        return
    order = sorted(names, key=lambda name: -np.mean([row[names.index(name)] for row in values]))
    if found.is_clear:
        yield Finding(
            f"the {len(samples)} models agree on the order of the metrics, on average {' > '.join(order)} ({found})",
            "further models with another order",
        )
    else:
        yield Finding(
            f"no order of the metrics was found that the {len(samples)} models have in common ({found})",
            "further models in which the order is the same",
        )


def _refused(runs: Sequence[StudyRun], choice: Choice | None) -> Iterator[str]:
    models, metrics = len({model_of(run) for run in runs}), len(choice.fidelity) if choice else 0
    if choice and models < (least := least_blocks(metrics)):
        yield (
            f"whether other models put the metrics in the same order: that takes at least {least} models for {metrics} "
            f"metrics, and there {'is' if models == 1 else 'are'} {models}"
        )
    for run in runs:
        if not run.report.fidelity:
            yield f"{run.cell.label}: the run has not measured single weights (--fidelity)"
        elif ABLATION in run.report.metrics:
            yield f"{run.cell.label}: ablation measures weights, so that it predicts nothing and has no fidelity"
    if choice and len({row.weights for row in choice.differences}) > 1:
        yield "metrics that rank other weights are compared on those that both rank, so differences do not add up"


def check(study: Study) -> None:
    """Raises InvalidInput for a study that compares no two metrics on one sample of weights."""
    if "metrics" in study.grid:
        raise InvalidInput(
            "metrics in the grid are run apart, so that each is measured on other weights",
            hint="give them in [run] metrics, or with --metric: one run measures all on one sample, and shares passes",
        )
    (given,) = values_of(study, "metrics", ())
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    if len([name for name in names if name != ABLATION]) < 2:
        raise InvalidInput(
            "a study of metrics needs at least two metrics that give scores", hint="give more with --metric"
        )
    if not all(values_of(study, "fidelity")):
        raise InvalidInput(
            "a study of metrics measures what single weights cost, which fidelity asks for",
            hint="leave out fidelity, or give a number of weights for each metric",
        )
    if any((cell.spec.fidelity or 0) < LEAST_SAMPLE for cell in cells_of(study)):
        raise InvalidInput(
            f"fewer than {LEAST_SAMPLE} weights for each metric are mostly the first of one metric or another, which makes "
            "metrics seem to disagree with the damage, and with each other",
            hint=f"leave out fidelity, or give at least {LEAST_SAMPLE}: half of them are then from all levels of the scores",
        )


QUESTION = StudyQuestion(
    name="metrics",
    place=3,
    asks="Which metric predicts best what a weight is worth, and which is worth its cost?",
    needs="a model and two or more metrics; several models show whether the order of the metrics is the same in all",
    check=check,
    answer=answer,
    run={
        "metrics": ("grad_x_weight", "grad_squared", "taylor", "magnitude", "wanda"),
        "topk": (50, 100),
        "fidelity": 40,
    },
)
