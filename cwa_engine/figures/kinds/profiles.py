"""Where the top of rankings lies, profiles side by side: of models in a study, and of compared runs. torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import compared, ranking_of, rows_of, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.records.compared import Comparison
from cwa_engine.studies.questions.architecture import SHARES
from cwa_engine.studies.report import StudyReport


@dataclass(frozen=True, slots=True)
class ModelPart:
    """The share of one part in a model's top k; `eligible` is its share in all that was ranked."""

    model: str
    family: str
    part: str
    count: int
    share: float
    eligible: float | None


@dataclass(frozen=True, slots=True)
class RunPart:
    """The share of one part in a run's top k; `eligible` is its share in all that was ranked."""

    run: str
    part: str
    count: int
    share: float
    eligible: float | None


def study_profiles(report: StudyReport) -> Iterator[Figure]:
    """A map of models by parts for each ranking, by component and by depth."""
    rows = rows_of(report, SHARES)
    for key in dict.fromkeys((row.metric, row.k, row.others, row.by) for row in rows):
        metric, k, others, by = key
        mine = [row for row in rows if (row.metric, row.k, row.others, row.by) == key]
        parts = [
            ModelPart(row.model, row.family, row.part, row.count, row.share, row.eligible)
            for row in sorted(mine, key=lambda row: row.family)
        ]
        name = figure_name("profiles", by, metric, others)
        yield Figure(
            name=name,
            title=f"Where the top {k:,} by {ranking_of(metric)} lie, by {by}",
            caption=f"{study_runs(report)} The share of each part in a model's top k = {k:,}; models of a family "
            f"stand together ({', '.join(dict.fromkeys(part.family for part in parts))}).",
            table=table_of(name, ModelPart, parts),
            x=Axis("part", by, "category", distinct([row.part for row in mine])),
            y=Axis("model", "model", "category", distinct([part.model for part in parts])),
            colour=Axis("share", "share of the top k"),
            layers=(Layer("cell"),),
        )


def compared_profiles(found: Comparison) -> Iterator[Figure]:
    """Bars side by side for each ranking at its largest k, by component and by depth."""
    largest = {row.metric: row.k for row in sorted(found.shares, key=lambda row: row.k)}
    shares = [row for row in found.shares if row.k == largest[row.metric]]
    for metric, by in dict.fromkeys((row.metric, row.by) for row in shares):
        mine = [row for row in shares if (row.metric, row.by) == (metric, by) and (row.count or row.eligible)]
        if not mine:
            continue
        parts = [RunPart(found.label(row.run), row.part, row.count, row.share, row.eligible) for row in mine]
        name = figure_name("profiles", by, metric)
        yield Figure(
            name=name,
            title=f"Where the top {largest[metric]:,} by {ranking_of(metric)} lie, by {by}",
            caption=f"{compared(found)} The share of each part in the top k = {largest[metric]:,} of each run.",
            table=table_of(name, RunPart, parts),
            x=Axis("part", by, "category", distinct([part.part for part in parts])),
            y=Axis("share", "share of the top k"),
            colour=Axis("run", "", "category", tuple(found.label(run.run) for run in found.runs)),
            layers=(Layer("bar"),),
        )


FIGURES = (
    FigureKind(
        "profiles", 10, "study", "where the top k of each model lies, by component and by depth", study_profiles
    ),
    FigureKind("profiles", 30, "comparison", "where the top k of each run lies, side by side", compared_profiles),
)
