"""How the scores of all ranked weights are distributed, and where the top k begin. torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.figures.captions import model_of, ranking_of, scored_on, units_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, figure_name, table_of
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import ScoreBin

AT_LEAST, IN_BIN, NEGATIVE = "at least so large", "in the bin", "negative, in the bin"


@dataclass(frozen=True, slots=True)
class ScoreCount:
    """How many units have a score in a bin, or at least as large as its lower edge. Counts are exact."""

    score: float  # the lower edge of |score|
    upper: float
    series: str  # AT_LEAST, IN_BIN or NEGATIVE
    units: int


def score_distributions(report: RunReport) -> Iterator[Figure]:
    """A figure for each metric that scored all weights."""
    for metric in dict.fromkeys(row.metric for row in report.scores):
        bins = [row for row in report.scores if row.metric == metric]
        counts = [*_tail([row for row in bins if row.sign == 1]), *_bins(bins)]
        if counts:
            yield _distribution(report, metric, bins, counts)


def _tail(positive: Sequence[ScoreBin]) -> Iterator[ScoreCount]:
    above = list(itertools.accumulate(row.count for row in reversed(positive)))[::-1]
    for row, units in zip(positive, above, strict=True):
        if row.low is not None and row.high is not None:
            yield ScoreCount(row.low, row.high, AT_LEAST, units)


def _bins(bins: Sequence[ScoreBin]) -> Iterator[ScoreCount]:
    for row in bins:
        if row.sign and row.low is not None and row.high is not None:
            yield ScoreCount(row.low, row.high, IN_BIN if row.sign == 1 else NEGATIVE, row.count)


def _distribution(report: RunReport, metric: str, bins: Sequence[ScoreBin], counts: Sequence[ScoreCount]) -> Figure:
    name, units = figure_name("score_distribution", metric), units_of(report, metric)
    there = tuple(series for series in (AT_LEAST, IN_BIN, NEGATIVE) if any(row.series == series for row in counts))
    lowest = _lowest_of_top(report, metric)
    marked = (Layer("rule", at=lowest, upright=True, dashed=True),) if lowest else ()
    return Figure(
        name=name,
        title=f"Scores of all {units} by {ranking_of(metric)}",
        caption=f"{model_of(report)}. {scored_on(report)} {_counted(bins, units)} The line: how many {units} have at least "
        "such a score. Points: how many are in each bin, at its lower edge; each doubling of the score has eight bins."
        + (f" The upright line is the last place of the top k = {report.spec.largest_k:,}." if lowest else ""),
        table=table_of(name, ScoreCount, counts),
        x=Axis("score", "|score|", "log"),
        y=Axis("units", units, "log"),
        colour=Axis("series", "", "category", there),
        layers=(
            *marked,
            Layer("line", where=(("series", AT_LEAST),)),
            *(Layer("point", where=(("series", series),)) for series in there[there[0] == AT_LEAST :]),
        ),
    )


def _lowest_of_top(report: RunReport, metric: str) -> float | None:
    """The score of the last place; none where each group has places of its own, or the score is not positive."""
    if report.spec.scope != "global" or metric not in report.metrics:
        return None
    scores = [weight.score for weight in report.topk(metric) if weight.score is not None]
    return min(scores) if scores and min(scores) > 0 else None


def _counted(bins: Sequence[ScoreBin], units: str) -> str:
    zeros = sum(row.count for row in bins if row.sign == 0)
    not_finite = sum(row.count for row in bins if row.sign is None)
    said = f"All {sum(row.count for row in bins):,} {units} that were ranked"
    left_out = [
        f"{count:,} {what}"
        for count, what in ((zeros, "with a score of 0"), (not_finite, "without a finite score"))
        if count
    ]
    return f"{said}; {' and '.join(left_out)} have no place on the axis." if left_out else f"{said}."


FIGURES = (
    FigureKind(
        "score_distribution", 50, "run", "how many weights have which score, the tail, and where the top k begins",
        score_distributions,
    ),
)  # fmt: skip
