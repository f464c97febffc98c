"""What the rankings by several metrics have in common, and how well each predicts. torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import model_of, name_of, rows_of, scored_on, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.side_by_side import AGREEMENTS, MetricAgreement, agreements_of
from cwa_engine.studies.questions.metrics import FIDELITY
from cwa_engine.studies.report import StudyReport

MOST_COMPARED = 10_000  # places: comparing two lists of 100,000 takes 0.3 s, and a run may have a hundred pairs


@dataclass(frozen=True, slots=True)
class SharedTop:
    """The share of the top k that two rankings have in common; `expected` is that of random sets. Each pair is there twice."""

    first: str
    second: str
    k: int
    common: int
    share: float
    expected: float | None


def run_agreement(report: RunReport) -> Iterator[Figure]:
    """One figure of all pairs of rankings of the same weights."""
    k = min(report.spec.largest_k, MOST_COMPARED)
    pairs = agreements_of(report, k, model_of(report), 0)
    yield from _matrix("metric_agreement", f"{model_of(report)}. {scored_on(report)}", pairs)


def study_agreement(report: StudyReport) -> Iterator[Figure]:
    """A figure for each run of the study."""
    rows = rows_of(report, AGREEMENTS)
    for cell, model in dict.fromkeys((row.cell, row.model) for row in rows):
        name = figure_name("metric_agreement", model if len({row.cell for row in rows}) > 1 else "")
        yield from _matrix(name, f"{name_of(model)}.", [row for row in rows if row.cell == cell])


def _matrix(name: str, of: str, pairs: Iterable[MetricAgreement]) -> Iterator[Figure]:
    rows = [
        SharedTop(one, other, pair.k, pair.common, pair.common / pair.k, _expected(pair))
        for pair in pairs
        for one, other in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    if rows:
        names = distinct([row.first for row in rows])
        yield Figure(
            name=name,
            title=f"What the top {rows[0].k:,} of two metrics have in common",
            caption=f"{of} The share of the top k = {rows[0].k:,} that two rankings have in common. Rankings that "
            "were chosen from other weights are not compared, and have no cell.",
            table=table_of(name, SharedTop, rows),
            x=Axis("first", "", "category", names),
            y=Axis("second", "", "category", names),
            colour=Axis("share", "share of the top k in common", ends=(0, 1)),
            layers=(Layer("cell"),),
        )


def _expected(pair: MetricAgreement) -> float | None:
    expected = pair.expected_within if pair.expected_within is not None else pair.expected
    return None if expected is None else expected / pair.k


@dataclass(frozen=True, slots=True)
class PredictiveMetric:
    """Spearman's correlation of a metric's scores with measured |changes of the loss|, with its 95 % interval."""

    metric: str
    model: str
    weights: int
    passes: int  # forward passes over the scoring texts, a backward pass counted as two
    spearman: float | None
    low: float | None
    high: float | None


def study_fidelity(report: StudyReport) -> Iterator[Figure]:
    """One figure of all metrics and models."""
    rows = [
        PredictiveMetric(row.metric, row.model, row.weights, row.work, row.spearman, row.low, row.high)
        for row in rows_of(report, FIDELITY)
    ]
    if rows:
        yield Figure(
            name="metric_fidelity",
            title="How well each metric predicts the change of the loss",
            caption=f"{study_runs(report)} Spearman's correlation of scores with the measured size of the change by "
            "zeroing each sampled weight alone, with 95 % intervals (jackknife over weights).",
            table=table_of("metric_fidelity", PredictiveMetric, rows),
            x=Axis("spearman", "rank correlation of score and measured change"),
            y=Axis("metric", "metric", "category", distinct([row.metric for row in rows])),
            colour=Axis("model", "", "category", distinct([row.model for row in rows])),
            layers=(
                Layer("rule", at=0.0, upright=True, dashed=True),
                Layer("interval", low="low", high="high"),
                Layer("point"),
            ),
        )


FIGURES = (
    FigureKind(
        "metric_agreement", 80, "run", "the share of the top k that each two metrics have in common", run_agreement
    ),
    FigureKind(
        "metric_agreement", 31, "study", "the share of the top k that each two metrics have in common", study_agreement
    ),
    FigureKind("metric_fidelity", 30, "study", "how well each metric predicts, with intervals", study_fidelity),
)
