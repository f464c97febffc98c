"""`scaling`: how do damage by critical weights, and how few of them it takes, go with the size of a model? torch-free."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.base.statistics import t975
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.differences import same_model
from cwa_engine.rows import DamagePoint
from cwa_engine.studies.analysis.families import families_of
from cwa_engine.studies.analysis.kill_sets import KillSet, kill_set_findings, kill_sets
from cwa_engine.studies.analysis.laws import (
    CONSTANT,
    EXPONENTIAL,
    LAWS,
    LEAST_SIZES,
    POWER,
    LawFit,
    best_of,
    fit_law,
    require_scipy,
)
from cwa_engine.studies.analysis.paired import (
    Array,
    Unit,
    common_unit,
    critical_changes,
    difference,
    log_covariance,
    scale_of,
)
from cwa_engine.studies.analysis.series import (
    Member,
    Series,
    first_of,
    require_damage,
    require_models,
    series_of,
    values_of,
)
from cwa_engine.studies.analysis.words import counted, figure, listed, size
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study

RULE = (
    "Damage is the change of the loss by the critical set, in nats per token where all models make the same tokens of the "
    "same texts, else in bits per byte. log(damage) = a + b log(parameters) is fitted by generalised least squares; the "
    "errors, and what they share as the texts are the same, are the jackknife's over texts. The law is rejected where "
    f"Hotelling's T² of the misfit has p <= {LEVEL}. The exponent's interval takes sizes to scatter about the law as much as "
    "they do (restricted maximum likelihood), with Student's t on sizes - 2 degrees of freedom. A constant and an exponential "
    f"are compared by AICc. Nothing is fitted to fewer than {LEAST_SIZES} sizes, or to damage that is not clearly above 0."
)


@dataclass(frozen=True, slots=True)
class ScalingPoint:
    """A model's critical set: a point of the figure. Empty where the loss is not finite, or was not compared with controls."""

    model: str
    family: str
    parameters: int
    metric: str
    k: int
    perturbation: str
    others: str  # what else the grid has
    unit: str
    damage: float | None
    low: float | None
    high: float | None
    worst_control: float | None
    control: str
    ratio: float | None  # |damage| over that of the worst control
    outcome: str  # of the run's own test against controls
    collapsed: bool
    fitted: bool  # whether the law was fitted to it
    power_law: float | None  # what the fitted law gives at this size


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """A law fitted to one series of critical sets."""

    metric: str
    k: int
    perturbation: str
    others: str
    law: str
    sizes: int
    intercept: float
    slope: float | None
    low: float | None
    high: float | None
    misfit: float
    p_value: float | None
    aicc: float | None
    scatter: float


POINTS = Table("scaling.csv", ScalingPoint)
FITS = Table("scaling_fits.csv", ScalingFit)
KILL_SETS = Table("kill_sets.csv", KillSet)


@dataclass(frozen=True)
class Fitted:
    """One series with what was fitted to it, or why nothing was."""

    series: Series
    unit: Unit
    used: tuple[Member, ...]
    fits: tuple[LawFit, ...] = ()
    refused: str = ""

    @property
    def power(self) -> LawFit | None:
        return next((fit for fit in self.fits if fit.law == POWER), None)


def answer(runs: Sequence[StudyRun]) -> Answer:
    """Damage and kill sets against parameters, see `RULE`."""
    series = series_of(runs)
    if not series:
        return Answer("scaling", "no run measured any damage, so nothing is known of its scaling", rule=RULE)
    found = [_fitted(entry) for entry in series]
    first = next(entry for entry in found if entry.series is first_of(series))
    sets = kill_sets(runs)
    return Answer(
        "scaling",
        _sentence(first),
        findings=(*_findings(first), *kill_set_findings(sets)),
        tables=(
            TableRows(POINTS, [row for entry in found for row in _points(entry)]),
            TableRows(FITS, [row for entry in found for row in _fits(entry)]),
            TableRows(KILL_SETS, sets),
        ),
        refused=tuple(_refused(found, first)),
        rule=RULE,
    )


def _fitted(series: Series) -> Fitted:
    unit = common_unit([member.report for member in series.members])
    used = tuple(member for member in series.members if not member.collapsed)
    entry = Fitted(series, unit, used)
    if why := _unfit(entry):
        return replace(entry, refused=why)
    covariance, freedom, why = _errors(entry)
    if covariance is None:
        return replace(entry, refused=why)
    sizes = [member.report.model.parameters for member in used]
    values = [member.point.delta_nll * scale_of(member.report, unit.name) for member in used]
    try:
        fits = tuple(fit_law(law, sizes, values, covariance, freedom) for law in LAWS)
    except (InvalidInput, np.linalg.LinAlgError) as error:
        return replace(entry, refused=str(error))
    return replace(entry, fits=fits)


def _unfit(entry: Fitted) -> str:
    """Why nothing may be fitted; "" where something may."""
    if not entry.unit.name:
        return entry.unit.why
    sizes = {member.report.model.parameters for member in entry.used}
    if len(sizes) < LEAST_SIZES:
        return f"{counted(len(sizes), 'size')} with a finite loss, and a law needs at least {LEAST_SIZES}"
    pairs = itertools.combinations(entry.used, 2)
    if twice := next(((one, other) for one, other in pairs if same_model(one.report, other.report)), None):
        return f"{twice[0].model} and {twice[1].model} are the same files, one model and not two"
    if unclear := [member for member in entry.used if not member.point.delta_low > 0]:
        said = listed([f"{m.model} {_nats(m.point)}" for m in unclear])
        return f"the damage is not clearly above 0, so it has no logarithm: {said} nats per token"
    return require_scipy()


def _nats(point: DamagePoint) -> str:
    return figure(point.delta_nll, point.delta_low, point.delta_high)


def _errors(entry: Fitted) -> tuple[Array | None, int, str]:
    """(covariance of log damage over the sizes, its degrees of freedom, why there is none)"""
    reports = [member.report for member in entry.used]
    if entry.unit.paired:
        changes = [critical_changes(m.report, entry.unit.name).get(m.key) for m in entry.used]
        known = [change for change in changes if change is not None]
        if len(known) == len(changes):
            covariance = log_covariance(known)
            why = "" if covariance is not None else "with one text left out the damage of a model is not above 0"
            return covariance, len(known[0].changes) - 1, why
    texts = [member.point.sequences for member in entry.used]
    if min(texts) < 2:
        return None, 0, f"{reports[texts.index(min(texts))].model.name} was measured on one text, which has no error"
    errors = [_error(member.point) / member.point.delta_nll for member in entry.used]
    return np.diag(np.square(errors)), min(texts) - 1, ""


def _error(point: DamagePoint) -> float:
    """The standard error that an interval of a run is made of."""
    return (point.delta_high - point.delta_low) / 2 / t975(point.sequences - 1) / (1 + 2 / point.sequences)


def _sentence(entry: Fitted) -> str:
    return f"{entry.series.label}: {_law(entry)}{_beaten(entry)}"


def _law(entry: Fitted) -> str:
    power = entry.power
    collapsed = [member.model for member in entry.series.members if member.collapsed]
    without = f"; without {listed(collapsed)}, whose loss is not finite" if collapsed else ""
    if power is None:
        return f"no law is fitted: {entry.refused}{without}"
    sizes = [member.report.model.parameters for member in entry.used]
    over = f"over {counted(len(sizes), 'model')} from {size(sizes[0])} to {size(sizes[-1])} parameters{without}"
    assert power.slope is not None and power.low is not None and power.high is not None and power.p_value is not None
    exponent = f"exponent {figure(power.slope, power.low, power.high)}"
    misfit = f"T² = {power.misfit:.3g}, {p_text(power.p_value)}"
    if power.is_rejected:
        return (
            f"damage follows no power law {over}: the misfit is more than errors of measurement explain ({misfit}); sizes "
            f"scatter about the best one by a factor of {math.exp(power.scatter):.2f}, {exponent}{_not_rejected(entry)}"
        )
    if power.low <= 0 <= power.high:
        return f"no scaling of damage with size was found {over}: {exponent} of a power law includes 0"
    falls = "falls" if power.slope < 0 else "grows"
    fits = f"that it is one is not rejected ({misfit}){_rivals(entry)}"
    return f"damage {falls} with size as a power law {over}, {exponent}; {fits}"


def _beaten(entry: Fitted) -> str:
    """That the damage may be that of any weights: it then says nothing of critical ones."""
    tested = [member for member in entry.series.members if member.group.controls]
    failing = [member for member in tested if member.group.outcome != "harmful"]
    return f"; in {len(failing)} of {counted(len(tested), 'model')} it is not told from controls" if failing else ""


def _not_rejected(entry: Fitted) -> str:
    others = [_A_LAW[fit.law] for fit in entry.fits if fit.law != POWER and not fit.is_rejected]
    return f"; {listed(others)} is not rejected" if others else "; an exponential and a constant are rejected too"


_A_LAW = {CONSTANT: "a constant", EXPONENTIAL: "an exponential"}


def _rivals(entry: Fitted) -> str:
    best = best_of(entry.fits)
    if not best:
        return ""
    others = [_A_LAW[fit.law] for fit in best if fit.law != POWER]
    if len(others) == len(best):
        return f", but {listed(others)} fits better by AICc"
    return f", and {listed(others)} fits as well by AICc" if others else ", and it fits best by AICc"


def _findings(entry: Fitted) -> Iterator[Finding]:
    members, unit = entry.series.members, entry.unit
    if power := entry.power:
        yield Finding(
            f"fitted to {entry.series.label} in {unit.name}: "
            + "; ".join(
                f"{fit.law} T² = {fit.misfit:.3g}, {p_text(fit.p_value)}"
                + (f", AICc {fit.aicc:.3g}" if fit.aicc is not None else "")
                for fit in entry.fits
            ),
            f"a size between or beyond these whose damage is not near the law's, for instance "
            f"{power.at(10 * members[-1].report.model.parameters):.3g} {unit.name} at "
            f"{size(10 * members[-1].report.model.parameters)} parameters"
            if not power.is_rejected
            else "the same sizes on other texts, if their misfit were within errors there",
        )
    if unit.name:
        yield from _ends(entry)
    tested = [member for member in members if member.group.controls]
    if tested:
        beaten = [member for member in tested if member.group.outcome == "harmful"]
        failing = [m for m in tested if m not in beaten]
        said = (
            f"the critical set is told from its controls as harmful in {len(beaten)} of {counted(len(tested), 'model')}"
        )
        if failing:
            names = listed([f"{member.model} ({member.group.outcome})" for member in failing])
            said += f"; not in {names}, whose damage may be that of any weights"
        yield Finding(said, "more draws of controls, or more texts, by which a model's verdict changes")


def _ends(entry: Fitted) -> Iterator[Finding]:
    """The smallest model beside the largest, text by text: what holds whatever the law is."""
    if len(entry.used) < 2:
        return
    small, large = entry.used[0], entry.used[-1]
    changes = [critical_changes(m.report, entry.unit.name).get(m.key) for m in (small, large)]
    if not entry.unit.paired or changes[0] is None or changes[1] is None:
        return
    value, low, high = difference(changes[1], changes[0])
    clear = low > 0 or high < 0
    word = ("more" if value > 0 else "less") if clear else "not clearly more or less"
    yield Finding(
        f"{entry.series.label} raises the loss of {large.model} {word} than that of {small.model}: "
        f"{figure(value, low, high)} {entry.unit.name}, "
        f"on {len(changes[0].changes)} texts",
        "other texts, on which the interval lies on the other side of 0"
        if clear
        else "more texts, by which 0 is left out",
    )


def _refused(found: Sequence[Fitted], first: Fitted) -> Iterator[str]:
    for entry in found:
        for member in entry.series.members:
            if member.collapsed:
                yield (
                    f"{entry.series.label}: the loss of {member.model} is not finite, beyond all numbers; the law is of the "
                    "others alone, and such a size tells against it if it should hold there"
                )
        if entry.refused:
            yield f"{entry.series.label}: no law is fitted: {entry.refused}"
        if entry.power and entry.unit.why:
            yield f"{entry.series.label}: damage is in {entry.unit.name}, as {entry.unit.why}"
    families, source = families_of([member.report for member in first.series.members])
    if len(set(families)) > 1:
        names = listed(list(dict.fromkeys(families)))
        yield (
            f"sizes of different families confound size with architecture and training: {names} (by {source}); what goes with "
            "size may go with the family"
        )
    others = [entry for entry in found if entry.power and entry is not first]
    if others and first.power:
        yield (
            f"{counted(len(others), 'further series', 'further series')} in scaling_fits.csv are tests of their own at "
            f"{LEVEL:.0%} each, not corrected for their number; the answer is about {first.series.label}"
        )


def _points(entry: Fitted) -> Iterator[ScalingPoint]:
    series, unit = entry.series, entry.unit.name or "nats per token"
    families, _ = families_of([member.report for member in series.members])
    for member, family in zip(series.members, families, strict=True):
        point, worst = member.point, member.group.worst_control
        scale = scale_of(member.report, unit)
        parameters = member.report.model.parameters
        values: list[float | None] = [None, None, None]
        if not member.collapsed:
            values = [_finite(number * scale) for number in (point.delta_nll, point.delta_low, point.delta_high)]
        yield ScalingPoint(
            model=member.model,
            family=family,
            parameters=parameters,
            metric=series.metric,
            k=series.k,
            perturbation=series.perturbation,
            others=series.others,
            unit=unit,
            damage=values[0],
            low=values[1],
            high=values[2],
            worst_control=worst.largest * scale if worst and worst.largest is not None else None,
            control=worst.control if worst else "",
            ratio=worst.ratio if worst else None,
            outcome=member.group.outcome or "not tested",
            collapsed=member.collapsed,
            fitted=entry.power is not None and not member.collapsed,
            power_law=entry.power.at(parameters) if entry.power else None,
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _fits(entry: Fitted) -> Iterator[ScalingFit]:
    series = entry.series
    for fit in entry.fits:
        yield ScalingFit(
            series.metric, series.k, series.perturbation, series.others, fit.law, len(entry.used), fit.intercept, fit.slope,
            fit.low, fit.high, fit.misfit, fit.p_value, fit.aicc, fit.scatter,
        )  # fmt: skip


def check(study: Study) -> None:
    """Raises InvalidInput for a study of one model, of one k that differs by model, or without damage."""
    require_models(study, 2, f"scaling compares models of different sizes, and fits a law to {LEAST_SIZES} and more")
    require_damage(study)
    if any(value for value in values_of(study, "weights", ())):
        raise InvalidInput(
            "given weights are not the critical weights of every size",
            hint="leave out weights, and give metrics and topk",
        )


QUESTION = StudyQuestion(
    name="scaling",
    place=1,
    asks="How do the damage by the critical weights and the number needed go with the size of a model?",
    needs=f"{LEAST_SIZES} models of one family or more, of different sizes; two to compare without a law",
    check=check,
    answer=answer,
    run={"metrics": ("grad_x_weight",), "topk": (1, 10, 100), "perturbations": ("zero",), "matrices": False},
)
