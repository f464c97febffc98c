"""Runs of a study sorted by what is the same in them: the same metric, k and perturbation, for one model after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cwa_engine.base.errors import InvalidInput
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.rows import DamagePoint
from cwa_engine.studies.analysis.words import doing
from cwa_engine.studies.answer import StudyRun
from cwa_engine.studies.study import Study

OF_MODEL = ("model", "revision", "dtype", "device", "offload")  # fields by which models of a study differ


@dataclass(frozen=True)
class Member:
    """The critical set of one model."""

    run: StudyRun
    group: DamageSummary

    @property
    def report(self) -> RunReport:
        return self.run.report

    @property
    def model(self) -> str:
        return model_of(self.run)

    @property
    def point(self) -> DamagePoint:
        assert self.group.critical
        return self.group.critical

    @property
    def collapsed(self) -> bool:
        """Whether a loss was not finite: there is no number that could be compared or averaged."""
        return self.point.collapsed_at is not None or not math.isfinite(self.point.delta_nll)

    @property
    def key(self) -> tuple[str, int, str]:
        return self.group.metric, self.group.k, self.group.perturbation


@dataclass(frozen=True)
class Series:
    """The same critical set of several models, the smallest model first."""

    metric: str
    k: int
    perturbation: str
    others: str  # further values of the grid that all have, "seed 1"; empty where there are none
    members: tuple[Member, ...]

    @property
    def label(self) -> str:
        return f"{doing(self.perturbation)} the top {self.k:,} by {self.metric}{f', {self.others}' * bool(self.others)}"


def model_of(run: StudyRun) -> str:
    """The model of a run with whatever else of its loading differs between cells: `pythia-70m, revision step1000`."""
    values = run.cell.values
    further = [f"{name} {values[name]}" for name in OF_MODEL[1:] if values.get(name, "None") != "None"]
    return ", ".join([values.get("model", run.report.model.name), *further])


def others_of(run: StudyRun, of_model: Sequence[str] = ("model",)) -> str:
    """What else differs between the cells of a study than the model: `seed 1`. `of_model` are fields that belong to it."""
    return ", ".join(f"{name} {value}" for name, value in run.cell.values.items() if name not in of_model)


def series_of(runs: Iterable[StudyRun]) -> list[Series]:
    """Every critical set that was measured, in the order of the runs; the largest k of a metric before smaller ones."""
    found: dict[tuple[str, str, str, int], list[Member]] = {}
    for run in runs:
        for group in run.report.summary.damage:
            if group.critical is not None:
                key = others_of(run), group.metric, group.perturbation, group.k
                found.setdefault(key, []).append(Member(run, group))
    order = list(dict.fromkeys(key[:3] for key in found))
    keys = sorted(found, key=lambda key: (order.index(key[:3]), -key[3]))
    return [
        Series(metric, k, perturbation, others, tuple(sorted(found[key], key=lambda m: m.report.model.parameters)))
        for key in keys
        for others, metric, perturbation, k in [key]
    ]


def first_of(series: Sequence[Series]) -> Series:
    """The series that the answer is about: of the first metric and perturbation the largest k that most models have."""
    head = series[0]
    alike = [s for s in series if (s.others, s.metric, s.perturbation) == (head.others, head.metric, head.perturbation)]
    return max(alike, key=lambda s: (len(s.members), s.k))


def values_of(study: Study, name: str, default: object = None) -> tuple[object, ...]:
    """The values that a field of the spec has in the runs of a study."""
    return tuple(study.grid[name]) if name in study.grid else (study.shared.get(name, default),)


def require_models(study: Study, least: int, why: str) -> None:
    """Raises InvalidInput for a study of fewer different models."""
    names = {
        (str(model), str(revision)) for model in values_of(study, "model") for revision in values_of(study, "revision")
    }
    names = {name for name in names if name[0] != "None"}
    if len(names) < least:
        raise InvalidInput(
            f"{why}, and this study has {len(names)}", hint=f"give at least {least} with --models, or in [grid] model"
        )


def require_damage(study: Study) -> None:
    """Raises InvalidInput for a study that only ranks."""
    if any(value in ((), []) for value in values_of(study, "perturbations", ("zero",))):
        raise InvalidInput(
            "the study measures no damage, which its question is about", hint="leave out perturbations = []"
        )
