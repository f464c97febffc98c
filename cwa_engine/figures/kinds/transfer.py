"""Whether the critical weights of a model stay critical in its variants. torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.figures.captions import name_of, ranking_of, rows_of, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.records.comparison import ranking_overlap
from cwa_engine.records.differences import other_rankings, other_weights
from cwa_engine.rows import GIVEN
from cwa_engine.studies.analysis.series import model_of
from cwa_engine.studies.analysis.words import doing
from cwa_engine.studies.answer import StudyRun
from cwa_engine.studies.questions.transfer import TABLE, TransferRow
from cwa_engine.studies.report import StudyReport

BASE, CARRIED, OWN = "base's weights in the base", "base's weights here", "own weights here"


@dataclass(frozen=True, slots=True)
class SharedCoordinates:
    """The share of the top k that two models have in common; `expected` is that of random sets. Each pair is there twice."""

    first: str
    second: str
    k: int
    common: int
    share: float
    expected: float | None


@dataclass(frozen=True, slots=True)
class CarriedDamage:
    """A change of the loss in a variant, or in the base."""

    variant: str
    series: str  # BASE, CARRIED or OWN
    change: float | None
    low: float | None
    high: float | None


def transfers(report: StudyReport) -> Iterator[Figure]:
    """For each metric and k of a study of transfer the matrix of its models, and what the base's weights do in variants."""
    rows = rows_of(report, TABLE)
    for metric, k in dict.fromkeys((row.metric, row.k) for row in rows):
        yield from _matrix(report, metric, k)
    for key in dict.fromkeys(_key(row) for row in rows):
        yield from _damage(report, [row for row in rows if _key(row) == key])


def _key(row: TransferRow) -> tuple[str, int, str, str, str]:
    return row.metric, row.k, row.perturbation, row.base, row.others


def _matrix(report: StudyReport, metric: str, k: int) -> Iterator[Figure]:
    runs = [
        run
        for run in report.runs
        if metric in run.report.metrics and metric != GIVEN and k <= run.report.spec.largest_k
    ]
    rows = [row for one, other in itertools.combinations(runs, 2) for row in _shared(one, other, metric, k)]
    if rows:
        names = distinct([model_of(run) for run in runs])
        name = figure_name("transfer_matrix", metric, str(k))
        yield Figure(
            name=name,
            title=f"What the top {k:,} of two models by {ranking_of(metric)} have in common",
            caption=f"{study_runs(report)} The share of the top k = {k:,} with the same coordinates in both models. "
            "Models whose weights are not the same coordinates have no cell.",
            table=table_of(name, SharedCoordinates, rows),
            x=Axis("first", "", "category", names),
            y=Axis("second", "", "category", names),
            colour=Axis("share", "share of the top k in common", ends=(0, 1)),
            layers=(Layer("cell"), Layer("text")),
        )


def _shared(one: StudyRun, other: StudyRun, metric: str, k: int) -> Iterator[SharedCoordinates]:
    if other_weights(one.report, other.report) or other_rankings(one.report, other.report):
        return
    found = ranking_overlap(one.report, other.report, metric, k)
    expected = found.by_chance[0]
    for first, second in ((one, other), (other, one)):
        yield SharedCoordinates(
            model_of(first), model_of(second), k, found.common, found.common / found.of_first,
            None if expected is None else expected / found.of_first,
        )  # fmt: skip


def _damage(report: StudyReport, rows: Sequence[TransferRow]) -> Iterator[Figure]:
    known = [row for row in rows if row.carried_outcome or row.own is not None]
    if not known:
        return
    first = known[0]
    points = [
        *(CarriedDamage(row.variant, CARRIED, row.carried, row.carried_low, row.carried_high) for row in known),
        *(CarriedDamage(row.variant, OWN, row.own, None, None) for row in known),
        CarriedDamage(first.base, BASE, first.base_damage, None, None),
    ]
    name = figure_name("transfer_damage", *_key(first)[:1], str(first.k), first.perturbation, first.others)
    yield Figure(
        name=name,
        title=f"What the top {first.k:,} of {name_of(first.base)} do in its variants",
        caption=f"{study_runs(report)} Changes by {doing(first.perturbation)} the top k = {first.k:,} by "
        f"{ranking_of(first.metric)}, of the base and of each variant; with 95 % "
        "intervals over texts where the base's weights were changed in a variant.",
        table=table_of(name, CarriedDamage, points),
        x=Axis("change", f"change of the loss ({first.unit or 'nats per token'})", "symlog", linear_within=1e-3),
        y=Axis("variant", "model", "category", distinct([first.base, *(row.variant for row in known)])),
        colour=Axis("series", "", "category", (BASE, CARRIED, OWN)),
        layers=(
            Layer("rule", at=0.0, upright=True, dashed=True),
            Layer("interval", low="low", high="high"),
            Layer("point"),
        ),
    )


FIGURES = (
    FigureKind(
        "transfer_matrix", 10, "study", "the share of the top k that each two models have in common; the base's "
        "weights in variants",
        transfers,
    ),
)  # fmt: skip
