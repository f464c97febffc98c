"""Runs beside each other: damage curves over each other, and ranks against ranks. torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import NATS, compared, ranking_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.figures.kinds.damage_curve import CURVE_LAYERS, CurvePoint, is_part_of_a_sweep, series_of
from cwa_engine.records.compared import Comparison
from cwa_engine.records.comparison import rank_pairs
from cwa_engine.records.curves import MEDIAN
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import GIVEN
from cwa_engine.studies.analysis.words import doing

MOST_POINTS = 2000  # of a scatter: more say no more, and make a page slow
BOTH = "in both"


def compared_curves(found: Comparison) -> Iterator[Figure]:
    """A figure for each ranking and perturbation: critical sets and the leading draw of each control, run by run."""
    levels = [row for row in found.damage if row.figure != MEDIAN and not is_part_of_a_sweep(row.perturbation)]
    for metric, perturbation in dict.fromkeys((row.metric, row.perturbation) for row in levels):
        mine = [row for row in levels if (row.metric, row.perturbation) == (metric, perturbation)]
        runs = [run for run in found.runs if any(row.run == run.run for row in mine)]
        if len(runs) < 2:
            continue
        points = [
            CurvePoint(
                row.k,
                f"{found.label(row.run)}: {series_of(row)}",
                row.log_ratio,
                row.low,
                row.high,
                row.texts,
                row.collapsed,
            )
            for run in runs
            for row in sorted(mine, key=lambda row: row.k)
            if row.run == run.run
        ]
        unlike = distinct([why for pair in found.pairs for why in pair.unlike(perturbation)])
        warning = f" These were not measured alike: {'; '.join(unlike)}." if unlike else ""
        name = figure_name("damage_curve", metric, perturbation)
        yield Figure(
            name=name,
            title=f"Change of the loss by {doing(perturbation)} the top k by {ranking_of(metric)}",
            caption=f"{compared(found)} Critical sets, and of each control the leading draw, with "
            f"95 % intervals over texts.{warning}",
            table=table_of(name, CurvePoint, points),
            x=Axis("k", "weights changed, k", "log"),
            y=Axis("change", NATS, "symlog", linear_within=1e-3),
            colour=Axis("series", "", "category", distinct([point.series for point in points])),
            layers=CURVE_LAYERS,
        )


@dataclass(frozen=True, slots=True)
class RankedTwice:
    """A unit with its places in the rankings of two runs; `series` says which of them has it in its top k."""

    target: str
    component: str
    layer: int | None
    first: int | None
    second: int | None
    series: str


def compared_ranks(found: Comparison) -> Iterator[Figure]:
    """A scatter for each ranking and each two runs of the same weights."""
    for one, other in itertools.combinations(found.reports, 2):
        pair = next(pair for pair in found.pairs if (pair.first, pair.second) == (one.run_id, other.run_id))
        if pair.other_weights or pair.other_rankings:
            continue
        for metric in dict.fromkeys(row.metric for row in found.overlaps if row.metric != GIVEN):
            key = metric, one.run_id, other.run_id
            if sizes := [row.k for row in found.overlaps if (row.metric, row.first, row.second) == key]:
                yield _ranks(found, one, other, metric, max(sizes))


def _ranks(found: Comparison, first: RunReport, second: RunReport, metric: str, k: int) -> Figure:
    one, other = found.label(first.run_id), found.label(second.run_id)
    pairs = rank_pairs(first, second, metric, k)
    drawn = pairs[:: -(-len(pairs) // MOST_POINTS)]
    rows = [
        RankedTwice(
            pair.target, pair.component, pair.layer, pair.first, pair.second,
            BOTH if pair.first and pair.second else f"only {one if pair.first else other}",
        )
        for pair in drawn
    ]  # fmt: skip
    name = figure_name("ranks", metric, *((one, other) if len(found.runs) > 2 else ()))
    thinned = f" {len(drawn):,} of {len(pairs):,} weights are drawn, evenly chosen." if len(drawn) < len(pairs) else ""
    both = sum(pair.first is not None and pair.second is not None for pair in pairs)
    return Figure(
        name=name,
        title=f"Places in the top {k:,} by {ranking_of(metric)}: {one} and {other}",
        caption=f"{compared(found)} {both:,} weights are in the top k = {k:,} of both and have a point; the line is "
        f"where places are equal.{thinned}",
        table=table_of(name, RankedTwice, rows),
        x=Axis("first", f"place in {one}", "log"),
        y=Axis("second", f"place in {other}", "log"),
        layers=(Layer("diagonal", dashed=True), Layer("point", where=(("series", BOTH),))),
    )


FIGURES = (
    FigureKind("damage_curve", 10, "comparison", "damage curves of the runs over each other", compared_curves),
    FigureKind("ranks", 20, "comparison", "places of weights in two runs against each other", compared_ranks),
)
