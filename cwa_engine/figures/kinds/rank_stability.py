"""How far rankings by other texts, seeds or settings agree. torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cwa_engine.figures.captions import model_of, rows_of, scored_on, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, table_of
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.questions.stability import PAIRS, StabilityPair
from cwa_engine.studies.report import StudyReport

PAIR, MEAN, CHANCE, HALVES = "pair of repeats", "mean of pairs", "by chance", "two halves"


@dataclass(frozen=True, slots=True)
class Agreed:
    """How far two rankings by other texts agree."""

    metric: str
    top: str  # "k 100"
    series: str
    first: int | None  # the repeats that are compared, from 1; None for means
    second: int | None
    agreement: float


@dataclass(frozen=True, slots=True)
class SharedByPair:
    """The share of the top k that two runs have in common, which differ in one thing alone."""

    axis: str
    model: str
    others: str
    first: str
    second: str
    metric: str
    k: int
    series: str  # the metric, or CHANCE
    common: float
    share: float


def run_stability(report: RunReport) -> Iterator[Figure]:
    """One figure of all repeats, and one of the two halves of the scoring texts."""
    if report.summary.stability:
        yield _repeats(report)
    if report.summary.halves:
        yield _halves(report)


def _repeats(report: RunReport) -> Figure:
    rows = [
        *(Agreed(p.metric, f"k {p.k:,}", PAIR, p.first, p.second, p.jaccard) for p in report.stability),
        *(Agreed(m.metric, f"k {m.k:,}", MEAN, None, None, m.jaccard) for m in report.summary.stability),
        *(Agreed(m.metric, f"k {m.k:,}", CHANCE, None, None, m.chance) for m in report.summary.stability),
    ]
    pairs = max(mean.pairs for mean in report.summary.stability)
    return _figure(
        "rank_stability",
        "How far rankings by other texts agree",
        f"{model_of(report)}. {scored_on(report)} Rankings were repeated by texts drawn anew; each of {pairs:,} "
        "pairs of repeats has a point, the Jaccard index of their top k, beside the mean and what random sets have.",
        rows,
        "Jaccard index of the top k",
    )


def _halves(report: RunReport) -> Figure:
    halves = [half for half in report.summary.halves if half.k]
    rows = [
        *(Agreed(h.metric, f"k {h.k:,}", HALVES, 1, 2, h.common / h.k) for h in halves),
        *(Agreed(h.metric, f"k {h.k:,}", CHANCE, None, None, h.chance / h.k) for h in halves),
    ]
    return _figure(
        "half_agreement",
        "What two halves of the scoring texts rank alike",
        f"{model_of(report)}. {scored_on(report)} The share of the top k that the rankings by two disjoint halves of "
        "these texts have in common, beside that of random sets.",
        rows,
        "share of the top k in common",
    )


def _figure(name: str, title: str, caption: str, rows: list[Agreed], across: str) -> Figure:
    """A row of the figure for each metric and k."""
    tops = distinct([row.top for row in rows])
    labelled = rows if len(tops) < 2 else [replace(row, metric=f"{row.metric}, {row.top}") for row in rows]
    return Figure(
        name=name,
        title=title,
        caption=caption,
        table=table_of(name, Agreed, labelled),
        x=Axis("agreement", across, ends=(0, 1)),
        y=Axis("metric", "ranking", "category", distinct([row.metric for row in labelled])),
        colour=Axis("series", "", "category", distinct([row.series for row in labelled])),
        layers=(Layer("point"),),
    )


def study_stability(report: StudyReport) -> Iterator[Figure]:
    """One figure of all pairs of runs that tell something."""
    rows = [row for row in rows_of(report, PAIRS) if not row.nothing_new]
    if not rows:
        return
    shared = [_shared(row, row.metric, row.common) for row in rows]
    by_chance = [_shared(row, CHANCE, expected) for row in rows if (expected := _expected(row)) is not None]
    axes = distinct([row.axis for row in shared])
    sizes = ", ".join(f"{k:,}" for k in dict.fromkeys(row.k for row in rows))
    yield Figure(
        name="rank_stability",
        title="What the top k have in common when one thing differs",
        caption=f"{study_runs(report)} Each point is a pair of runs of one model that differ in the value of one "
        f"axis alone: the share of the top k that both have (k = {sizes}). By chance: random "
        "sets with as many weights of each parameter, or of all ranked weights where that is not known.",
        table=table_of("rank_stability", SharedByPair, [*shared, *by_chance]),
        x=Axis("share", "share of the top k in common", ends=(0, 1)),
        y=Axis("axis", "what differs", "category", axes),
        colour=Axis("series", "", "category", distinct([*(row.metric for row in shared), CHANCE])),
        layers=(Layer("point"),),
    )


def _expected(row: StabilityPair) -> float | None:
    return row.expected_within if row.expected_within is not None else row.expected


def _shared(row: StabilityPair, series: str, common: float) -> SharedByPair:
    return SharedByPair(
        row.axis, row.model, row.others, row.first, row.second, row.metric, row.k, series, common, common / row.k
    )


FIGURES = (
    FigureKind("rank_stability", 70, "run", "how far rankings by other texts, or by two halves, agree", run_stability),
    FigureKind("rank_stability", 20, "study", "what the top k have in common where one thing differs", study_stability),
)
