"""The damage by critical sets of models of several families, side by side. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.table import Table
from cwa_engine.studies.analysis.families import families_of
from cwa_engine.studies.analysis.paired import NATS, common_unit, scale_of
from cwa_engine.studies.analysis.series import series_of
from cwa_engine.studies.analysis.words import doing, figure, listed
from cwa_engine.studies.answer import Finding, StudyRun


@dataclass(frozen=True, slots=True)
class FamilyDamage:
    """The damage by a model's critical set, in a unit that all models share. None where the loss is not finite."""

    model: str
    family: str
    parameters: int
    metric: str
    k: int
    perturbation: str
    others: str
    unit: str
    damage: float | None
    low: float | None
    high: float | None
    ratio: float | None  # over the worst control
    outcome: str
    collapsed: bool


DAMAGE = Table("family_damage.csv", FamilyDamage)


def family_damage(runs: Sequence[StudyRun]) -> Iterator[FamilyDamage]:
    """Critical sets side by side, in bits per byte where tokens differ."""
    for series in series_of(runs):
        reports = [member.report for member in series.members]
        unit, (families, _) = common_unit(reports), families_of(reports)
        for member, family in zip(series.members, families, strict=True):
            point, worst = member.point, member.group.worst_control
            scale = scale_of(member.report, unit.name or NATS)
            delta, low, high = (
                None if member.collapsed else n * scale for n in (point.delta_nll, point.delta_low, point.delta_high)
            )
            yield FamilyDamage(
                member.model, family, member.report.model.parameters, series.metric, series.k, series.perturbation,
                series.others, unit.name or f"{NATS}, not comparable", delta, low, high, worst.ratio if worst else None,
                member.group.outcome or "not tested", member.collapsed,
            )  # fmt: skip


def damage_findings(rows: Sequence[FamilyDamage], label: str) -> Iterator[Finding]:
    """What the critical sets of that label cost each model."""
    for perturbation in dict.fromkeys(row.perturbation for row in rows):
        said = listed([_harm(row) for row in rows if row.perturbation == perturbation])
        unit = next(row.unit for row in rows if row.perturbation == perturbation)
        yield Finding(
            f"{doing(perturbation)} {label} changes the loss, in {unit}: {said}",
            "other texts or another k, by which another family loses most; each interval is that of its own model alone",
        )


def _harm(row: FamilyDamage) -> str:
    if row.damage is None or row.low is None or row.high is None:
        return f"{row.model} beyond all numbers, as its loss is not finite"
    return f"{row.model} {figure(row.damage, row.low, row.high)} ({row.outcome})"
