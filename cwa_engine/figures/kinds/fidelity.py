"""Whether scores predict what zeroing a weight costs: scores against measured changes. torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import NATS, linear_within, measured_on, model_of, ranking_of, units_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, figure_name, table_of
from cwa_engine.records.run_report import RunReport


@dataclass(frozen=True, slots=True)
class PredictedUnit:
    """A unit of the sample: its score, and the measured change of the loss in nats per token by zeroing it alone."""

    target: str
    stratum: str
    score: float | None
    change: float
    low: float
    high: float


def fidelity_scatters(report: RunReport) -> Iterator[Figure]:
    """A figure for each metric of which the fidelity was asked for."""
    for place, fidelity in enumerate(report.fidelity):
        name = figure_name("fidelity", fidelity.metric)
        units = [
            PredictedUnit(row.target, row.stratum, row.scores[place], row.delta_nll, row.delta_low, row.delta_high)
            for row in report.predictions
            if row.scores[place] is not None
        ]
        correlation = "is not defined" if fidelity.spearman is None else f"is {fidelity.spearman:.3f}"
        is_positive = all(unit.score is not None and unit.score > 0 for unit in units)
        yield Figure(
            name=name,
            title=f"Scores by {ranking_of(fidelity.metric)} against measured changes of the loss",
            caption=f"{model_of(report)}. {measured_on(report)} Each of {len(units):,} sampled "
            f"{units_of(report, fidelity.metric)}, of those that the metric ranks, was zeroed "
            "alone; bars are 95 % intervals over texts. Spearman's correlation of "
            f"the score with the size of the change {correlation}.",
            table=table_of(name, PredictedUnit, units),
            x=Axis("score", "score (predicted)", "log" if is_positive else "linear"),
            y=Axis("change", f"measured {NATS}", "symlog", linear_within=linear_within(report)),
            layers=(Layer("rule", at=0.0, dashed=True), Layer("interval", low="low", high="high"), Layer("point")),
        )


FIGURES = (
    FigureKind(
        "fidelity", 60, "run", "scores against the measured change of the loss by zeroing each sampled weight alone",
        fidelity_scatters,
    ),
)  # fmt: skip
