"""From which size on critical weights can be relied on. torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import ranking_of, rows_of, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, figure_name, table_of
from cwa_engine.studies.questions.min_size import LEAST_SHARE, TABLE
from cwa_engine.studies.report import StudyReport

PASSES, FAILS, CHANCE = "passes", "fails", "by chance"


@dataclass(frozen=True, slots=True)
class SizedShare:
    """What the rankings by two halves of the texts share, in a model."""

    model: str
    parameters: int
    series: str  # PASSES, FAILS or CHANCE
    share: float | None
    why: str  # what the model fails by


def min_sizes(report: StudyReport) -> Iterator[Figure]:
    """A figure for each ranking."""
    rows = rows_of(report, TABLE)
    for key in dict.fromkeys((row.metric, row.k, row.perturbation, row.others) for row in rows):
        mine = [row for row in rows if (row.metric, row.k, row.perturbation, row.others) == key]
        metric, k, perturbation, others = key
        points = [
            *(SizedShare(r.model, r.parameters, PASSES if r.passes else FAILS, r.share, r.why) for r in mine),
            *(SizedShare(r.model, r.parameters, CHANCE, r.chance / k, "") for r in mine if r.chance is not None),
        ]
        name = figure_name("min_size", metric, str(k), perturbation, others)
        yield Figure(
            name=name,
            title=f"What two halves of the texts share of the top {k:,} by {ranking_of(metric)}, by size",
            caption=f"{study_runs(report)} The share of the top k = {k:,} that rankings by two halves of the scoring "
            f"texts have in common; the line is the {LEAST_SHARE:.0%} that a model needs. A model passes if it also "
            "is beyond chance and its critical set is told from every control as harmful.",
            table=table_of(name, SizedShare, sorted(points, key=lambda point: point.parameters)),
            x=Axis("parameters", "parameters", "log"),
            y=Axis("share", "share of the top k in common", ends=(0, 1)),
            colour=Axis("series", "", "category", (PASSES, FAILS, CHANCE)),
            layers=(Layer("rule", at=LEAST_SHARE, dashed=True), Layer("point")),
        )


FIGURES = (FigureKind("min_size", 10, "study", "what two halves of the texts share, by size of the model", min_sizes),)
