"""Pairs of runs that differ along one axis of a study: what their rankings share, and how their damage differs. torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.statistics import widened
from cwa_engine.methods.metrics import ABLATION, METRICS, Needs
from cwa_engine.records.compared import RankingOverlap
from cwa_engine.records.comparison import ranking_overlap
from cwa_engine.records.curves import DamageDifference, damage_differences
from cwa_engine.records.differences import other_rankings, other_weights, same_scoring, same_source
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import GIVEN, MATRICES
from cwa_engine.studies.answer import StudyRun

MODEL = ("model", "revision")
# Options that change which texts are scored, or how they become sequences.
OF_TEXTS = ("data_file", "dataset", "text_column", "eval_limit", "seq_len", "packed", "bos")


@dataclass(frozen=True)
class AxisPair:
    """Two runs of one model that differ in one value of the grid."""

    axis: str
    first: StudyRun
    second: StudyRun

    @property
    def reports(self) -> tuple[RunReport, RunReport]:
        return self.first.report, self.second.report

    @property
    def values(self) -> tuple[str, str]:
        return self.first.cell.values[self.axis], self.second.cell.values[self.axis]

    @property
    def model(self) -> str:
        return self.first.cell.values.get("model", self.first.report.model.name)

    @property
    def others(self) -> str:
        """What both have in common of the rest of the grid: `seed 1`."""
        return self.others_but(())

    def others_but(self, idle: Collection[str]) -> str:
        """The same without these axes."""
        values = self.first.cell.values.items()
        return ", ".join(f"{name} {value}" for name, value in values if name not in (*MODEL, self.axis, *idle))


@dataclass(frozen=True)
class PairOverlap:
    """What the top k of both runs share; `nothing_new` says why that was clear beforehand."""

    pair: AxisPair
    overlap: RankingOverlap
    nothing_new: str

    @property
    def share(self) -> float:
        return self.overlap.common / max(1, self.overlap.of_first)


def axes_of(runs: Sequence[StudyRun]) -> list[str]:
    """What differs between the runs beside the model."""
    return list(dict.fromkeys(name for run in runs for name in run.cell.values if name not in MODEL))


def pairs_of(runs: Sequence[StudyRun]) -> list[AxisPair]:
    """Every two runs of a model between which one value alone differs."""
    found = []
    for first, second in itertools.combinations(runs, 2):
        one, other = first.cell.values, second.cell.values
        changed = [name for name in one if one[name] != other.get(name)]
        if len(changed) == 1 and changed[0] not in MODEL and one.keys() == other.keys():
            found.append(AxisPair(changed[0], first, second))
    return found


def metrics_of(runs: Sequence[StudyRun]) -> list[str]:
    """The rankings of the runs, in their order."""
    return list(dict.fromkeys(name for run in runs for name in run.report.metrics if name != GIVEN))


def overlaps_of(pairs: Sequence[AxisPair], metric: str) -> Iterator[PairOverlap]:
    """At the largest k that both have; without pairs whose weights are not the same places."""
    idle = idle_axes(metric)
    seen = set()
    for pair in pairs:
        first, second = pair.reports
        if metric not in first.metrics or metric not in second.metrics:
            continue
        if other_weights(first, second) or other_rankings(first, second):
            continue
        k = min(first.spec.largest_k, second.spec.largest_k)
        key = pair.model, first.spec.revision, pair.values, pair.others_but(idle)
        why = nothing_new(pair, metric) or (
            "the ranking is that of another pair, as what else differs does not count for it" if key in seen else ""
        )
        seen.add(key)
        yield PairOverlap(pair, ranking_overlap(first, second, metric, k), why)


def idle_axes(metric: str) -> list[str]:
    """Options that change nothing in a ranking."""
    name = metric.removesuffix(MATRICES)
    return [*(["seed"] if draws_nothing(name) else []), *(OF_TEXTS if reads_nothing(name) else [])]


def nothing_new(pair: AxisPair, metric: str) -> str:
    """Why it was clear beforehand that both rankings are the same; "" where it was not."""
    name = metric.removesuffix(MATRICES)
    if pair.axis == "seed" and draws_nothing(name):
        return f"{name} draws nothing by the seed, which is that of control draws"
    if pair.axis in OF_TEXTS and reads_nothing(name):
        return f"{name} reads no texts"
    if pair.axis in OF_TEXTS and same_scoring(*pair.reports):
        return "both runs scored the same texts"
    return ""


def draws_nothing(metric: str) -> bool:
    """Whether scores by a metric are the same with every seed."""
    draws = Needs.TOKEN_FISHER | Needs.HESSIAN
    return metric in METRICS and metric != ABLATION and not METRICS[metric].needs & draws


def reads_nothing(metric: str) -> bool:
    """Whether scores by a metric are the same with all texts."""
    return metric in METRICS and metric != ABLATION and not METRICS[metric].needs


def shares_texts(pair: AxisPair) -> bool:
    """Whether runs by other texts may have some in common, so that their agreement says little of other texts."""
    return pair.axis in OF_TEXTS and same_source(*pair.reports)


def differences_of(
    pairs: Sequence[AxisPair], metric: str, k: int
) -> Iterator[tuple[AxisPair, DamageDifference, tuple[float, float, float]]]:
    """The difference of damage of each pair, paired by text where texts are the same, and its interval among all pairs."""
    found = [(pair, row) for pair in pairs for row in damage_differences(*pair.reports, metric=metric, k=k, force=True)]
    for pair, row in found:
        together = sum(other.perturbation == row.perturbation for _, other in found)
        yield pair, row, widened((row.difference, row.low, row.high), together)
