"""How the damage grows with the factor that weights are multiplied by. torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.figures.captions import (
    NATS,
    card_model,
    finite,
    linear_within,
    measured_by_card,
    measured_on,
    model_of,
    ranking_of,
)
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import DamagePoint
from cwa_engine.weight_rows import WeightCard

SCALE = "scale "  # doses are called `scale 0.5` and so on


@dataclass(frozen=True, slots=True)
class Dose:
    """Weights times a factor. Changes of the loss are nats per token; None where it is not finite."""

    factor: float
    series: str
    weights: int
    change: float | None
    low: float | None
    high: float | None
    texts: int
    collapsed: bool


def run_doses(report: RunReport) -> Iterator[Figure]:
    """A figure for each ranking of which doses were measured."""
    points = [group.critical for group in report.summary.damage if group.critical]
    doses = [point for point in points if point.perturbation.startswith(SCALE)]
    for metric in dict.fromkeys(point.metric for point in doses):
        rows = list(_rows((point for point in doses if point.metric == metric), lambda point: f"top {point.k:,}"))
        name = figure_name("dose_response", metric)
        what = f"Critical sets by {ranking_of(metric)}, multiplied by a factor."
        caption = f"{model_of(report)}. {measured_on(report)} {what} {INTERVALS}"
        yield _figure(name, f"Dose response of the top k by {ranking_of(metric)}", caption, rows, linear_within(report))


def card_doses(card: WeightCard) -> Iterator[Figure]:
    """One figure of the weight."""
    rows = list(_rows(card.doses, lambda point: "the weight alone"))
    if rows:
        floor = card.floor.largest if card.floor else 0.0
        caption = f"{card_model(card)}. {measured_by_card(card)} The weight multiplied by a factor. {INTERVALS}"
        yield _figure("dose_response", f"Dose response of {card.facts.target}", caption, rows, max(floor, 1e-3))


INTERVALS = "Bars are 95 % intervals over texts; a factor of 1 is the intact model."


def _rows(points: Iterable[DamagePoint], series: Callable[[DamagePoint], str]) -> Iterator[Dose]:
    for point in points:
        known = point.collapsed_at is None
        yield Dose(
            float(point.perturbation.removeprefix(SCALE)), series(point), point.weights,
            finite(point.delta_nll) if known else None, finite(point.delta_low) if known else None,
            finite(point.delta_high) if known else None, point.sequences, not known,
        )  # fmt: skip


def _figure(name: str, title: str, caption: str, rows: Sequence[Dose], floor: float) -> Figure:
    ordered = sorted(rows, key=lambda row: row.factor)
    return Figure(
        name=name,
        title=title,
        caption=caption,
        table=table_of(name, Dose, ordered),
        x=Axis("factor", "factor that weights are multiplied by"),
        y=Axis("change", NATS, "symlog", linear_within=floor),
        colour=Axis("series", "", "category", distinct([row.series for row in rows])),
        layers=(
            Layer("rule", at=0.0, dashed=True),
            Layer("rule", at=1.0, upright=True, dashed=True),
            Layer("line"),
            Layer("interval", low="low", high="high"),
            Layer("point"),
            Layer("beyond", where=(("collapsed", True),)),
        ),
    )


FIGURES = (
    FigureKind(
        "dose_response",
        20,
        "run",
        "the change of the loss by the factor that critical sets are multiplied by",
        run_doses,
    ),
    FigureKind(
        "dose_response",
        10,
        "weight",
        "the change of the loss by the factor that the weight is multiplied by",
        card_doses,
    ),
)
