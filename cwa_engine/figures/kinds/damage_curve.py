"""The change of the loss by k: critical sets beside their controls. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.figures.captions import NATS, linear_within, measured_on, model_of, ranking_of, units_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.questions.bits import BIT_FLIP
from cwa_engine.records.curves import MEDIAN, DamageLevel, damage_levels
from cwa_engine.records.remeasured import CRITICAL
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.words import doing

DOSE = "scale"  # doses are `scale 0.5` and so on


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A critical set, or of one control the leading or the median draw. Changes are nats per token."""

    k: int
    series: str  # "critical", or "random, leading draw"
    change: float | None  # None where the loss is not finite
    low: float | None  # of the 95 % interval; None where there is none
    high: float | None
    texts: int | None  # None for a median of draws that were each measured on texts of their own
    collapsed: bool


def damage_curves(report: RunReport) -> Iterator[Figure]:
    """A figure for each ranking and perturbation. Single bits and doses have figures of their own."""
    levels = [level for level in damage_levels(report) if not is_part_of_a_sweep(level.perturbation)]
    for metric, perturbation in dict.fromkeys((level.metric, level.perturbation) for level in levels):
        mine = [level for level in levels if (level.metric, level.perturbation) == (metric, perturbation)]
        yield _curve(report, metric, perturbation, mine)


def is_part_of_a_sweep(perturbation: str) -> bool:
    """Whether it is one bit of all, or one dose of several."""
    return perturbation.startswith((f"{BIT_FLIP} ", f"{DOSE} "))


def _curve(report: RunReport, metric: str, perturbation: str, levels: Sequence[DamageLevel]) -> Figure:
    points = [
        CurvePoint(of.k, series_of(of), of.log_ratio, of.low, of.high, of.texts, of.collapsed)
        for of in sorted(levels, key=lambda level: level.k)
    ]
    name = figure_name("damage_curve", metric, perturbation)
    series = distinct([CRITICAL, *(point.series for point in points)])
    return Figure(
        name=name,
        title=f"Change of the loss by {doing(perturbation)} the top k by {ranking_of(metric)}",
        caption=(
            f"{model_of(report)}. {measured_on(report)} Critical sets of k = {_listed(points)}, with 95 % intervals "
            f"over texts. {_controls(levels)}"
        ).strip(),
        table=table_of(name, CurvePoint, points),
        x=Axis("k", f"{units_of(report, metric)} changed, k", "log"),
        y=Axis("change", NATS, "symlog", linear_within=linear_within(report)),
        colour=Axis("series", "", "category", series),
        layers=CURVE_LAYERS,
    )


CURVE_LAYERS = (
    Layer("rule", at=0.0, dashed=True),
    Layer("line"),
    Layer("interval", low="low", high="high"),
    Layer("point"),
    Layer("beyond", where=(("collapsed", True),)),
)


def series_of(level: DamageLevel) -> str:
    """What the legend calls a point: "critical", or "random, leading draw"."""
    return CRITICAL if level.selection == CRITICAL else f"{level.selection}, {level.figure}"


def _listed(points: Sequence[CurvePoint]) -> str:
    return ", ".join(f"{k:,}" for k in dict.fromkeys(point.k for point in points))


def _controls(levels: Sequence[DamageLevel]) -> str:
    medians = [level for level in levels if level.figure == MEDIAN]
    if not medians:
        return "Not compared with controls."
    names = ", ".join(dict.fromkeys(level.selection for level in medians))
    return (
        f"Beside each the leading draw of {names}, the one that came out ahead of the others, with its interval, and the "
        "median of all draws, each on the texts that it was measured on."
    )


FIGURES = (
    FigureKind(
        name="damage_curve",
        place=10,
        of="run",
        shows="the change of the loss by k, with 95 % intervals, beside the leading and the median draw of each control",
        make=damage_curves,
    ),
)
