"""Rankings by several metrics in one run beside each other: what they share, and what their critical sets do. torch-free.

Rankings are compared where they were chosen from the same parameters: one of all weights does not compete with one of the
linear layers alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.statistics import paired_delta, widened
from cwa_engine.base.table import Table
from cwa_engine.records.comparison import ranking_overlap
from cwa_engine.records.curves import CriticalLosses
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.rows import GIVEN
from cwa_engine.studies.analysis.series import model_of
from cwa_engine.studies.analysis.words import counted, doing, figure, listed
from cwa_engine.studies.answer import Finding, StudyRun


@dataclass(frozen=True, slots=True)
class MetricAgreement:
    """What the top k of two rankings of one run share. Figures as in `RankingOverlap`."""

    cell: int
    model: str
    first: str
    second: str
    k: int
    common: int
    expected: float | None
    p_value: float | None
    expected_within: float | None
    p_within: float | None
    rbo: float | None
    kendall: float | None


@dataclass(frozen=True, slots=True)
class MetricDamage:
    """A critical set of one ranking, and how much less it does than that of the most harmful ranking of the same weights.

    Changes of the loss in nats per token. `less` is paired by text; its interval is one of all rankings together. None where a
    loss is not finite.
    """

    cell: int
    model: str
    ranking: str
    ranked: int | None  # weights that it was chosen from
    k: int
    perturbation: str
    delta: float | None
    low: float | None
    high: float | None
    outcome: str  # of the run's own test against controls
    ratio: float | None  # over the leading draw of the worst control
    most: str  # the ranking that does most
    less: float | None
    less_low: float | None
    less_high: float | None


AGREEMENTS = Table("metric_agreement.csv", MetricAgreement)
DAMAGE = Table("metric_damage.csv", MetricDamage)


def groups(report: RunReport) -> list[list[str]]:
    """The rankings of a run, together where they were chosen from the same parameters."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in report.metrics:
        if name != GIVEN:
            key = tuple(sorted(row.parameter for row in report.ranked if name in row.metrics))
            found.setdefault(key, []).append(name)
    return list(found.values())


def agreements(run: StudyRun) -> Iterator[MetricAgreement]:
    """Every pair of rankings of the same weights, at the largest k."""
    return agreements_of(run.report, run.report.spec.largest_k, model_of(run), run.cell.number)


def agreements_of(report: RunReport, k: int, model: str, cell: int) -> Iterator[MetricAgreement]:
    """The same of one run at any k, which rows call `model` and number `cell`."""
    for names in groups(report):
        for first, second in itertools.combinations(names, 2):
            row = ranking_overlap(report, report, first, k, second)
            yield MetricAgreement(
                cell, model, first, second, k, row.common, row.expected, row.p_value,
                row.expected_within, row.p_within, row.rbo, row.kendall,
            )  # fmt: skip


def metric_damage(run: StudyRun) -> Iterator[MetricDamage]:
    """Every critical set, beside the one of the same k that does most."""
    report = run.report
    if not report.summary.damage:
        return
    losses = CriticalLosses.of(report)
    changes = {(case.metric, case.k, case.perturbation): of for case, of in losses.cases.items()}
    group_of = {name: names for names in groups(report) for name in names}
    sets = [group for group in report.summary.damage if group.critical and group.metric in group_of]
    units = {name: sum(row.units for row in report.ranked if name in row.metrics) or None for name in group_of}
    for group in sets:
        rivals = [g for g in sets if g.metric in group_of[group.metric] and _case(g) == _case(group)]
        most = max(rivals, key=_size)
        assert group.critical
        point, above = group.critical, most.critical
        known = point.collapsed_at is None
        less: tuple[float | None, float | None, float | None] = (None, None, None)
        if most is not group and known and above and above.collapsed_at is None:
            mine, theirs = ((g.metric, g.k, g.perturbation) for g in (group, most))
            less = widened(paired_delta(changes[theirs], changes[mine], losses.tokens), len(rivals) - 1)
        worst = group.worst_control
        yield MetricDamage(
            cell=run.cell.number,
            model=model_of(run),
            ranking=group.metric,
            ranked=units[group.metric],
            k=group.k,
            perturbation=group.perturbation,
            delta=point.delta_nll if known else None,
            low=point.delta_low if known else None,
            high=point.delta_high if known else None,
            outcome=group.outcome or "not tested",
            ratio=worst.ratio if worst else None,
            most=most.metric,
            less=less[0],
            less_low=less[1],
            less_high=less[2],
        )


def _case(group: DamageSummary) -> tuple[int, str]:
    return group.k, group.perturbation


def _size(group: DamageSummary) -> float:
    """How much a critical set raises the loss; a collapse is the most."""
    assert group.critical
    delta = group.critical.delta_nll
    return delta if group.critical.collapsed_at is None and math.isfinite(delta) else math.inf


def damage_findings(rows: Sequence[MetricDamage]) -> Iterator[Finding]:
    """One for each run and population, at its largest k."""
    by_group: dict[tuple[int, str, str], list[MetricDamage]] = {}
    for row in rows:
        by_group.setdefault((row.cell, row.most, row.perturbation), []).append(row)
    for (_, most, perturbation), of_group in by_group.items():
        k = max(row.k for row in of_group)
        here = [row for row in of_group if row.k == k]
        if len(here) > 1:
            yield _damage_finding(here, most, perturbation, k)


def _damage_finding(here: Sequence[MetricDamage], most: str, perturbation: str, k: int) -> Finding:
    said = [f"{row.ranking} {_figure(row)} ({row.outcome})" for row in sorted(here, key=lambda row: -(row.delta or 0))]
    less = [row for row in here if row.less_low is not None and row.less_low > 0]
    alike = [row for row in here if row.ranking != most and row not in less and row.less is not None]
    end = f"; {most} raises it clearly more than {listed([row.ranking for row in less])}" if less else ""
    if alike:
        end += f"; no difference was found between {most} and {listed([row.ranking for row in alike])}"
    return Finding(
        f"{here[0].model}: {doing(perturbation)} the top {k:,} changes the loss, in nats per token, by {listed(said)}{end}",
        f"other texts, on which the difference to {most}, paired by text, is outside of its interval; the table has all "
        f"{counted(len(here), 'ranking')}",
    )


def _figure(row: MetricDamage) -> str:
    if row.delta is None or row.low is None or row.high is None:
        return "until it is not finite"
    return figure(row.delta, row.low, row.high)
