"""The revisions of one model in the order of its training, and what their tops have of the last one's. torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb

from cwa_engine.records.compared import RankingOverlap
from cwa_engine.records.comparison import ranking_overlap
from cwa_engine.records.differences import other_rankings, other_weights
from cwa_engine.records.profiles import top
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import TopWeight
from cwa_engine.studies.answer import StudyRun

LEAST = 3  # revisions
_LAST = ("main", "final", "last")  # names of the end of training
_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter|tokens)[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Trajectory:
    """Runs of the revisions of one model, the first of its training first."""

    model: str
    others: str  # what all runs have in common of the rest of the grid
    runs: tuple[StudyRun, ...]
    names: tuple[str, ...]
    by_number: bool  # ordered by the numbers in their names; else as given

    @property
    def last(self) -> RunReport:
        return self.runs[-1].report

    @property
    def label(self) -> str:
        return f"{self.model}{f', {self.others}' * bool(self.others)}"


def trajectories_of(runs: Sequence[StudyRun]) -> list[Trajectory]:
    """Runs that differ in their revision alone, or, in a study without revisions, in their model alone."""
    axis = "revision" if any("revision" in run.cell.values for run in runs) else "model"
    found: dict[tuple[str, str], list[StudyRun]] = {}
    for run in runs:
        others = ", ".join(f"{n} {value}" for n, value in run.cell.values.items() if n not in ("model", axis))
        model = "" if axis == "model" else run.cell.values.get("model", run.report.model.name)
        found.setdefault((model, others), []).append(run)
    return [_ordered(model, others, of_model, axis) for (model, others), of_model in found.items()]


def _ordered(model: str, others: str, runs: Sequence[StudyRun], axis: str) -> Trajectory:
    names = [_short(run.cell.values.get(axis, run.report.model.name), axis) for run in runs]
    numbers = [number_of(name) for name in names]
    known = [number for number in numbers if number is not None]
    by_number = len(known) == len(names) == len(set(known))
    order = sorted(range(len(runs)), key=lambda place: known[place]) if by_number else range(len(runs))
    if not model:  # folders of checkpoints: `llama-m` of llama-m-step10 and llama-m-step20
        model = _common(names)
        names = [name.removeprefix(model).lstrip("-_.") or name for name in names]
    return Trajectory(model, others, tuple(runs[i] for i in order), tuple(names[i] for i in order), by_number)


def _short(name: str, axis: str) -> str:
    """`step1000`: of a model's name the revision, or the last part of its path."""
    return name if axis == "revision" else name.rpartition("@")[2].rstrip("/").rpartition("/")[2]


def _common(names: Sequence[str]) -> str:
    """What the names begin with, `llama-m` of `llama-m-step10` and `llama-m-step20`."""
    shared = names[0]
    while shared and not all(name.startswith(shared) for name in names):
        shared = shared[:-1]
    return re.sub(r"[-_.]?(step|checkpoint|ckpt|iter)?[-_]?\d*$", "", shared) or "the model"


def number_of(name: str) -> float | None:
    """The step in the name of a revision, `1000` of step1000; infinity for main; None where there is none."""
    if name.lower() in _LAST:
        return float("inf")
    marked = _STEP.findall(name)
    numbers = marked or re.findall(r"\d+", name)
    return float(numbers[-1]) if numbers else None


def why_not(trajectory: Trajectory, metric: str) -> str:
    """Why its rankings cannot be set against the last one's; "" where they can."""
    if len(trajectory.runs) < LEAST:
        return f"{len(trajectory.runs)} revisions are done, and a trajectory needs at least {LEAST}"
    for run, name in zip(trajectory.runs, trajectory.names, strict=True):
        if metric not in run.report.metrics:
            return f"{name} has no ranking by {metric}"
        if why := other_weights(run.report, trajectory.last) or other_rankings(run.report, trajectory.last):
            return f"{name} is no revision of {trajectory.names[-1]}: {why}"
    return ""


@dataclass(frozen=True)
class WeightHistory:
    """A weight of the last top k in all revisions, the first one first."""

    weight: TopWeight
    ranks: tuple[int | None, ...]  # None where it is not within the ranked depth
    since: int  # number, from 0, of the revision from which on it stays in the top k


def histories(trajectory: Trajectory, metric: str, k: int) -> Iterator[WeightHistory]:
    """Every weight of the last top k, the first first."""
    ranks = [{weight.target: weight.rank for weight in run.report.topk(metric)} for run in trajectory.runs]
    for weight in top(trajectory.last, metric, k):
        of_weight = tuple(of_revision.get(weight.target) for of_revision in ranks)
        since = len(of_weight) - 1
        while since and (rank := of_weight[since - 1]) is not None and rank <= k:
            since -= 1
        yield WeightHistory(weight, of_weight, since)


def overlap_with_last(trajectory: Trajectory, metric: str, k: int) -> list[RankingOverlap]:
    """What the top k of each revision shares with the last one's."""
    return [ranking_overlap(run.report, trajectory.last, metric, k) for run in trajectory.runs]


def median_place(places: Sequence[int]) -> tuple[int, int, int]:
    """(median, low, high) of ordered places, with the 95 % interval by order statistics (Thompson 1936).

    The interval holds the median of what the places are drawn from, whatever it is distributed like, with at least 95 %;
    of fewer than six it is all of them.
    """
    ordered, n = sorted(places), len(places)
    outside, cut = 0.0, 0
    while cut < n // 2 and (outside := outside + comb(n, cut) / 2**n) <= 0.025:
        cut += 1
    cut = max(0, cut - 1)
    return ordered[(n - 1) // 2], ordered[cut], ordered[n - 1 - cut]
