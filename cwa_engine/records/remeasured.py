"""evaluation.csv read back as measurements: losses by case, and the comparisons that a spec asks for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cwa_engine.damage.competition import compete
from cwa_engine.damage.elimination import SAMPLE
from cwa_engine.damage.measured import (
    Damaged,
    Measured,
    MeasuredComparison,
    Reference,
    figures,
    sample_places,
)
from cwa_engine.damage.treatments import Comparison, Treatment, controls_of, seeds_of, sizes
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.methods.perturbations import PERTURBATIONS, Options
from cwa_engine.questions.registry import all_treatments
from cwa_engine.questions.tasks import TaskScore, chosen_draws
from cwa_engine.rows import DamagePoint, Ranking, SequenceNll
from cwa_engine.spec import RunSpec

INTACT, CRITICAL, ELSEWHERE = "intact", "critical", "elsewhere"
PLACE = Treatment("place", PERTURBATIONS["zero"], Options(), has_controls=False)


@dataclass(frozen=True, slots=True)
class Case:
    """What tells one measurement from the others in the tables of a run."""

    metric: str
    k: int | None
    perturbation: str
    selection: str
    seed: int | None

    def __str__(self) -> str:
        seed = "" if self.seed is None else f" seed {self.seed}"
        return f"{self.metric} k={self.k} {self.perturbation} {self.selection}{seed}"


def case_of(row: SequenceNll | DamagePoint | TaskScore) -> Case:
    return Case(row.metric, row.k, row.perturbation, row.selection, row.seed)


@dataclass(frozen=True)
class Asked:
    """One critical set under one treatment, with the cases that a spec asks to measure of it."""

    comparison: Comparison
    treatment: Treatment
    critical: Case | None
    draws: Mapping[str, Sequence[Case]]  # by control
    elsewhere: Sequence[Case]

    @property
    def cases(self) -> list[Case]:
        """In the order of tables."""
        return [*filter(None, [self.critical]), *itertools.chain(*self.draws.values()), *self.elsewhere]


def asked_of(spec: RunSpec, rankings: Sequence[Ranking], dtype: str) -> Iterator[Asked]:
    """Everything that a run of this spec measures, in the order of its tables. `dtype`: of the model's weights."""
    for ranking in rankings:
        for k in sizes(ranking.metric, len(ranking.weights), spec):
            comparison = Comparison(ranking.metric, k, ranking.structure, {}, ())
            for treatment in all_treatments(spec, dtype):
                name = treatment.label
                controls = controls_of(ranking.metric, spec) if treatment.has_controls else ()
                draws = {
                    control: [Case(ranking.metric, k, name, control, seed) for seed in seeds_of(control, spec)]
                    for control in controls
                }
                yield Asked(comparison, treatment, Case(ranking.metric, k, name, CRITICAL, None), draws, ())
            if spec.position_test:
                seeds = range(spec.seed, spec.seed + spec.control_seeds)
                places = [Case(ranking.metric, k, PLACE.label, ELSEWHERE, seed) for seed in seeds]
                yield Asked(comparison, PLACE, None, {}, places)


def cases_of_tasks(asked: Sequence[Asked], points: Mapping[Case, DamagePoint]) -> Iterator[Case]:
    """With what tasks are measured: the intact model, the largest critical sets, and of each control the draws chosen."""
    yield Case("", None, "", INTACT, None)
    sets = [one for one in asked if one.critical and one.treatment.has_controls]
    largest = {one.comparison.metric: one.comparison.k for one in sets}  # k ascends
    for one in sets:
        if one.critical and one.comparison.k == largest[one.comparison.metric]:
            yield one.critical
            for draws in one.draws.values():
                yield from (draws[place] for place in chosen_draws([points[case] for case in draws]))


def losses(rows: Sequence[SequenceNll]) -> tuple[Evaluation, dict[Case, Measured]]:
    """(the intact model on all texts, every case on the texts it was measured on). Raises ValueError for rows that are not so.

    The intact model's texts are numbered from 1 without a gap; a case has some of them, in order, each with its tokens.
    """
    intact: Evaluation | None = None
    cases: dict[Case, Measured] = {}
    for case, members in itertools.groupby(rows, key=case_of):
        group = list(members)
        places = np.array([row.sequence - 1 for row in group], dtype=np.int64)
        sums = np.array([row.nll_sum for row in group], dtype=np.float64)
        tokens = np.array([row.tokens for row in group], dtype=np.float64)
        if intact is None:
            if case.selection != INTACT or not np.array_equal(places, np.arange(len(group))) or not (tokens > 0).all():
                raise ValueError("it does not begin with the intact model on every text")
            intact = Evaluation(sums, tokens)
            continue
        if case in cases:
            raise ValueError(f"{case} is there twice")
        known = len(intact.tokens)
        if (np.diff(places) <= 0).any() or places[0] < 0 or places[-1] >= known:
            raise ValueError(f"the texts of {case} are not {known} texts in order")
        if not np.array_equal(tokens, intact.tokens[places]):
            raise ValueError(f"the texts of {case} have other tokens than those of the intact model")
        cases[case] = Measured(places, Evaluation(sums, tokens))
    if intact is None:
        raise ValueError("it has no rows")
    return intact, cases


def reference_of(intact: Evaluation, rounding: float, rule: str) -> Reference:
    """What changes are judged by; `rounding` is the numerical floor, which no table has, `rule` that of the manifest."""
    return Reference(intact, sample_places(len(intact.tokens)), rounding, rule)


def misplaced(reference: Reference, asked: Asked, cases: Mapping[Case, Measured]) -> Iterator[tuple[Case, str]]:
    """(case, what is wrong) for each that was not measured on the texts that the rule of the run asks for."""
    everything = len(reference.intact.tokens)
    if asked.critical and len(cases[asked.critical].places) < everything:
        yield asked.critical, f"measured on {len(cases[asked.critical].places)} of {everything} texts"
        return
    for case in asked.elsewhere:
        if not np.array_equal(cases[case].places, reference.sample):
            yield case, "measured on other texts than the sample"
    for control, draws in asked.draws.items():
        assert asked.critical
        if reference.rule == SAMPLE:
            yield from _misplaced_by_sample(reference, draws, cases)
        else:
            yield from _misplaced(reference, control, cases[asked.critical], draws, cases)


class _NotMeasured(Exception):
    """(draw, texts): it was not measured on the first so many."""


def _misplaced(
    reference: Reference, control: str, critical: Measured, draws: Sequence[Case], cases: Mapping[Case, Measured]
) -> Iterator[tuple[Case, str]]:
    """The draws of a control that were measured on other texts than the elimination asks for."""

    def measured(draw: int, texts: int) -> Measured:
        found = cases[draws[draw]]
        if not np.isin(reference.first(texts), found.places).all():
            raise _NotMeasured(draw, texts)
        return found

    try:
        standing = compete(reference, control, critical, len(draws), measured)
    except _NotMeasured as missing:
        draw, texts = missing.args
        yield draws[draw], f"measured on {len(cases[draws[draw]].places)} texts, not on the first {texts}"
        return
    for case, texts in zip(draws, standing.texts[1:], strict=True):
        if not np.array_equal(cases[case].places, reference.first(texts)):
            yield case, f"measured on {len(cases[case].places)} texts, not on the first {texts} alone"


def _misplaced_by_sample(
    reference: Reference, draws: Sequence[Case], cases: Mapping[Case, Measured]
) -> Iterator[tuple[Case, str]]:
    """By the earlier rule every draw was measured on the sample, and the one that does most there on all texts."""
    everything = len(reference.intact.tokens)
    elsewhere = [
        case
        for case in draws
        if len(cases[case].places) < everything and not np.array_equal(cases[case].places, reference.sample)
    ]
    yield from ((case, "measured on other texts than the sample of all draws") for case in elsewhere)
    if elsewhere or len(reference.sample) == everything:
        return
    whole = [case for case in draws if len(cases[case].places) == everything]
    changes = {case: _size_on_sample(reference, cases[case]) for case in draws}
    if len(whole) != 1:
        yield draws[0], f"of the draws {len(whole)} were measured on all texts, not the one that does most"
    elif not changes[whole[0]] >= max(changes.values()) * (1 - 1e-9):
        yield whole[0], "measured on all texts, but another draw does more on the sample"


def _size_on_sample(reference: Reference, measured: Measured) -> float:
    change = measured.on(reference.sample).nll_sums - reference.on(reference.sample).nll_sums
    return float(abs(change.sum())) if np.isfinite(change).all() else np.inf


def compared(
    reference: Reference, asked: Asked, cases: Mapping[Case, Measured], points: Mapping[Case, DamagePoint]
) -> MeasuredComparison:
    """A comparison with every figure made anew from losses; what losses do not tell is taken from `points`."""

    def damaged(case: Case) -> Damaged:
        return Damaged(cases[case], replace(points[case], **figures(reference, cases[case])))

    return MeasuredComparison(
        asked.comparison,
        asked.treatment,
        damaged(asked.critical) if asked.critical else None,
        {control: [damaged(case) for case in draws] for control, draws in asked.draws.items()},
        tuple(damaged(case) for case in asked.elsewhere),
    )
