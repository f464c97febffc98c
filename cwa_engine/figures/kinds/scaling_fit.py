"""Damage and kill sets against the size of models, with the fitted law. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.p_values import p_text
from cwa_engine.figures.captions import ranking_of, rows_of, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.studies.analysis.laws import POWER
from cwa_engine.studies.analysis.words import doing
from cwa_engine.studies.questions.scaling import FITS, KILL_SETS, POINTS, ScalingFit, ScalingPoint
from cwa_engine.studies.report import StudyReport

MEASURED, LAW, CONTROL = "measured", "power law", "worst control"


@dataclass(frozen=True, slots=True)
class SizedDamage:
    """A model's damage, that of its worst control, or what the fitted law gives at its size."""

    model: str
    parameters: int
    series: str  # MEASURED, LAW or CONTROL
    damage: float | None  # None where the loss is not finite
    low: float | None
    high: float | None
    outcome: str  # of the run's own test against controls
    collapsed: bool


def scaling_fits(report: StudyReport) -> Iterator[Figure]:
    """A figure for each critical set, and one of the kill sets."""
    points, fits = rows_of(report, POINTS), rows_of(report, FITS)
    for key in dict.fromkeys(_key(point) for point in points):
        yield _damage(report, [point for point in points if _key(point) == key], [f for f in fits if _key(f) == key])
    yield from _kill_sets(report)


def _key(row: ScalingPoint | ScalingFit) -> tuple[str, int, str, str]:
    return row.metric, row.k, row.perturbation, row.others


def _damage(report: StudyReport, points: Sequence[ScalingPoint], fits: Sequence[ScalingFit]) -> Figure:
    first = points[0]
    ordered = sorted(points, key=lambda point: point.parameters)
    rows = [
        *(
            SizedDamage(p.model, p.parameters, MEASURED, p.damage, p.low, p.high, p.outcome, p.collapsed)
            for p in ordered
        ),
        *(_beside(p, LAW, p.power_law) for p in ordered if p.power_law is not None),
        *(_beside(p, CONTROL, p.worst_control) for p in ordered if p.worst_control is not None),
    ]
    name = figure_name("scaling_fit", first.metric, str(first.k), first.perturbation, first.others)
    values = [row.damage for row in rows if row.damage is not None]
    return Figure(
        name=name,
        title=f"Damage by size: {doing(first.perturbation)} the top {first.k:,} by {ranking_of(first.metric)}",
        caption=f"{study_runs(report)} {f'{first.others}. ' if first.others else ''}Critical sets of k = {first.k:,} "
        f"with 95 % intervals over texts, beside the leading draw of each run's worst control. {_law(fits)}",
        table=table_of(name, SizedDamage, rows),
        x=Axis("parameters", "parameters", "log"),
        y=Axis(
            "damage",
            f"change of the loss ({first.unit or 'nats per token'})",
            "log" if all(value > 0 for value in values) else "symlog",
            linear_within=1e-3,
        ),
        colour=Axis("series", "", "category", distinct([row.series for row in rows])),
        layers=(
            *((Layer("rule", at=0.0, dashed=True),) if any(value <= 0 for value in values) else ()),
            Layer("line", where=(("series", LAW),), dashed=True),
            Layer("interval", low="low", high="high", where=(("series", MEASURED),)),
            *(Layer("point", where=(("series", series),)) for series in (MEASURED, CONTROL)),
            Layer("beyond", where=(("collapsed", True),)),
        ),
    )


def _beside(point: ScalingPoint, series: str, damage: float) -> SizedDamage:
    return SizedDamage(point.model, point.parameters, series, damage, None, None, point.outcome, False)


def _law(fits: Sequence[ScalingFit]) -> str:
    power = next((fit for fit in fits if fit.law == POWER), None)
    if power is None or power.slope is None or power.low is None or power.high is None:
        return "No law was fitted."
    misfit = "" if power.p_value is None else f", misfit {p_text(power.p_value)}"
    return f"The power law's exponent is {power.slope:.3g} [{power.low:.3g}, {power.high:.3g}]{misfit}."


@dataclass(frozen=True, slots=True)
class SizedKillSet:
    """How many weights it takes in a model; None where the search did not reach the factor."""

    model: str
    parameters: int
    metric: str
    by: str
    size: int | None
    most: int  # that were tried


def _kill_sets(report: StudyReport) -> Iterator[Figure]:
    sets = rows_of(report, KILL_SETS)
    rows = [SizedKillSet(s.model, s.parameters, s.metric, s.by, s.size, s.most) for s in sets]
    if any(row.size is not None for row in rows):
        by = ", ".join(dict.fromkeys(row.by for row in rows))
        yield Figure(
            name="kill_sets",
            title="How few weights it takes, by size",
            caption=f"{study_runs(report)} The smallest set of weights that is enough, by {by}.",
            table=table_of("kill_sets", SizedKillSet, sorted(rows, key=lambda row: row.parameters)),
            x=Axis("parameters", "parameters", "log"),
            y=Axis("size", "weights in the set", "log"),
            colour=Axis("metric", "", "category", distinct([row.metric for row in rows])),
            layers=(Layer("line"), Layer("point"), Layer("beyond")),
        )


FIGURES = (
    FigureKind(
        "scaling_fit",
        10,
        "study",
        "damage against parameters with intervals, controls and the fitted law; kill sets",
        scaling_fits,
    ),
)
