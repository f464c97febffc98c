"""When the last revision's top weights became critical: damage and overlap by revision. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.figures.captions import NATS, name_of, ranking_of, rows_of, study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.studies.analysis.words import doing
from cwa_engine.studies.questions.trajectory import STEPS, RevisionStep
from cwa_engine.studies.report import StudyReport

SHARED, SETTLED, CHANCE = "in the top k", "in it to stay", "by chance"


@dataclass(frozen=True, slots=True)
class RevisionShare:
    """The share of the last revision's top k that an earlier one has."""

    revision: str
    series: str  # SHARED, SETTLED or CHANCE
    weights: float
    share: float


@dataclass(frozen=True, slots=True)
class RevisionDamage:
    """What a revision's own critical set does, in nats per token; None where the loss is not finite or nothing was damaged."""

    revision: str
    metric: str
    change: float | None
    low: float | None
    high: float | None
    perplexity: float  # of the intact model
    outcome: str


def trajectories(report: StudyReport) -> Iterator[Figure]:
    """Of each model and metric the overlap, and of each model the damage by all metrics."""
    steps = rows_of(report, STEPS)
    for key in dict.fromkeys((step.model, step.others, step.metric) for step in steps):
        yield _overlap(report, [step for step in steps if (step.model, step.others, step.metric) == key])
    for model in dict.fromkeys((step.model, step.others) for step in steps):
        mine = [step for step in steps if (step.model, step.others) == model]
        if any(step.perturbation for step in mine):
            yield _damage(report, mine)


def _overlap(report: StudyReport, steps: Sequence[RevisionStep]) -> Figure:
    last = steps[-1]
    expected = [(step, _expected(step)) for step in steps]
    rows = [
        *(RevisionShare(s.revision, SHARED, s.common, s.common / s.k) for s in steps),
        *(RevisionShare(s.revision, SETTLED, s.settled, s.settled / s.k) for s in steps),
        *(
            RevisionShare(s.revision, CHANCE, by_chance, by_chance / s.k)
            for s, by_chance in expected
            if by_chance is not None
        ),
    ]
    name = figure_name("trajectory", last.model, last.others, last.metric)
    return Figure(
        name=name,
        title=f"When the top {last.k:,} of {last.revision} by {ranking_of(last.metric)} became critical",
        caption=f"{study_runs(report)} {_of(last)}. The share of the top k = {last.k:,} of revision {last.revision} "
        "that each revision has in its own top k, that stays there from then on, and that random sets would have.",
        table=table_of(name, RevisionShare, rows),
        x=Axis("revision", "revision", "category", distinct([step.revision for step in steps])),
        y=Axis("share", f"share of the last top {last.k:,}", ends=(0, 1)),
        colour=Axis("series", "", "category", distinct([row.series for row in rows])),
        layers=(Layer("line"), Layer("point")),
    )


def _damage(report: StudyReport, steps: Sequence[RevisionStep]) -> Figure:
    last = steps[-1]
    rows = [
        RevisionDamage(s.revision, s.metric, s.damage, s.low, s.high, s.perplexity, s.outcome)
        for s in steps
        if s.perturbation
    ]
    name = figure_name("trajectory_damage", last.model, last.others)
    return Figure(
        name=name,
        title=f"What the top {last.k:,} of each revision do",
        caption=f"{study_runs(report)} {_of(last)}. Each revision's own top k = {last.k:,}, by {doing(last.perturbation)} it, "
        "with 95 % intervals over texts.",
        table=table_of(name, RevisionDamage, rows),
        x=Axis("revision", "revision", "category", distinct([row.revision for row in rows])),
        y=Axis("change", NATS, "symlog", linear_within=1e-3),
        colour=Axis("metric", "", "category", distinct([row.metric for row in rows])),
        layers=(
            Layer("rule", at=0.0, dashed=True),
            Layer("line"),
            Layer("interval", low="low", high="high"),
            Layer("point"),
        ),
    )


def _expected(step: RevisionStep) -> float | None:
    return step.expected_within if step.expected_within is not None else step.expected


def _of(step: RevisionStep) -> str:
    return ", ".join(filter(None, (name_of(step.model), step.others)))


FIGURES = (
    FigureKind("trajectory", 10, "study", "overlap with the last top k and damage, revision by revision", trajectories),
)
