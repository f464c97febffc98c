"""Two to four finished runs beside each other: what differs, what their rankings share, what their damage is. torch-free.

comparison = compare(open_run("results/a"), open_run("results/b"))
for sentence in comparison.sentences: print(sentence)
comparison.overlaps[0].common, comparison.overlaps[0].expected
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.overlap import ChanceOverlap, Stratum, overlap_by_chance
from cwa_engine.base.statistics import jaccard, kendall, kendall_p, rank_biased_overlap, spearman
from cwa_engine.records.compared import ComparedRun, Comparison, RankingOverlap, RankPair, RunPair
from cwa_engine.records.comparison_words import differing, limits, sentences
from cwa_engine.records.curves import damage_differences, damage_levels
from cwa_engine.records.differences import (
    differences,
    other_measuring,
    other_rankings,
    other_settings,
    other_weights,
    pairing,
    same_model,
    same_scoring,
    same_source,
)
from cwa_engine.records.profiles import PARTS, ProfileShare, distance, parts_of, profile, top
from cwa_engine.records.run_id import short_id
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import GIVEN, TopWeight

MOST_RUNS = 4


def compare(*reports: RunReport, metric: str | None = None, k: int | None = None, force: bool = False) -> Comparison:
    """Two to four runs beside each other; one ranking or one k if asked for, else all that two runs share.

    What may not be compared is left out, and named with the reason. With `force` the damage of runs that were not measured
    alike is subtracted nevertheless, each difference with its reasons; weights of other models are never compared one by one.

    Raises InvalidInput for another number of runs, for a run given twice, for a metric that no two of them ranked by, for a
    k that is larger than their rankings, and with all reasons where nothing may be compared.

        cwa.compare(cwa.open_run("results/a"), cwa.open_run("results/b")).sentences
    """
    if not 2 <= len(reports) <= MOST_RUNS:
        raise InvalidInput(f"{len(reports)} runs cannot be compared", hint=f"give two to {MOST_RUNS}")
    ids = [report.run_id for report in reports]
    if twice := next((run for run in ids if ids.count(run) > 1), None):
        raise InvalidInput(f"run {twice} is given twice", hint="give two runs")
    couples = list(itertools.combinations(reports, 2))
    judged = [_pair(first, second) for first, second in couples]
    chosen = _chosen(reports, metric, k)
    shares = [_profiles(reports, name, size, by) for name, size in chosen for by in PARTS]
    found = Comparison(
        runs=tuple(_compared_runs(reports)),
        pairs=tuple(judged),
        differences=tuple(differences(reports)),
        overlaps=tuple(
            ranking_overlap(first, second, name, size)
            for name, size in chosen
            for (first, second), pair in zip(couples, judged, strict=True)
            if not (pair.other_weights or pair.other_rankings) and _have(name, size, first, second)
        ),
        shares=tuple(row for by_run in shares for rows in by_run.values() for row in rows),
        distances=tuple(
            distance(by_run[pair.first], by_run[pair.second])
            for by_run in shares
            for pair in judged
            if not pair.other_rankings and pair.first in by_run and pair.second in by_run
        ),
        damage=tuple(level for report in reports for level in damage_levels(report, metric, k)),
        damage_differences=tuple(
            row for first, second in couples for row in damage_differences(first, second, metric, k, force=force)
        ),
        forced=force,
        reports=reports,
    )
    if not (found.overlaps or found.distances or found.damage_differences):
        raise _incomparable(found, [(first, second, metric, k) for first, second in couples])
    return replace(found, differing=differing(found), sentences=tuple(sentences(found)))


def _incomparable(
    found: Comparison, asked: Sequence[tuple[RunReport, RunReport, str | None, int | None]]
) -> InvalidInput:
    """The refusal of runs of which nothing may be compared, with what force would give."""
    reasons = list(limits(found)) or ["they share no ranking, and no critical set was damaged in two of them"]
    forced = not found.forced and any(next(damage_differences(*of, force=True), None) for of in asked)
    return InvalidInput(
        f"nothing of these runs may be compared: {'; '.join(reasons)}",
        hint="with --force (force=True) the damage is subtracted nevertheless, each difference with its reasons"
        if forced
        else "give runs that rank the same things by the same metric",
    )


def rank_pairs(first: RunReport, second: RunReport, metric: str, k: int) -> tuple[RankPair, ...]:
    """Every unit in the top k of either run with its places, those that both have first.

    Raises InvalidInput where a unit of one run is none of the other's.
    """
    if why := other_weights(first, second) or other_rankings(first, second):
        raise InvalidInput(f"the rankings cannot be compared weight by weight: {why}")
    ours, theirs = ({weight.target: weight for weight in top(report, metric, k)} for report in (first, second))
    found = []
    for target, weight in {**theirs, **ours}.items():
        one, other = ours.get(target), theirs.get(target)
        found.append(
            RankPair(target, weight.component, weight.layer, one.rank if one else None, other.rank if other else None)
        )
    return tuple(sorted(found, key=lambda row: (None in (row.first, row.second), row.first or row.second or 0)))


def _compared_runs(reports: Sequence[RunReport]) -> Iterator[ComparedRun]:
    short = [short_id(report.run_id) for report in reports]
    for report, label in zip(reports, short, strict=True):
        unambiguous = label if label and short.count(label) == 1 else report.run_id
        baseline = report.baseline
        yield ComparedRun(report.run_id, unambiguous, report.model.name, baseline.perplexity, baseline.bits_per_byte)


def _pair(first: RunReport, second: RunReport) -> RunPair:
    return RunPair(
        first=first.run_id,
        second=second.run_id,
        same_model=same_model(first, second),
        same_scoring=same_scoring(first, second),
        same_source=same_source(first, second),
        other_weights=other_weights(first, second),
        other_rankings=other_rankings(first, second),
        other_measuring=other_measuring(first, second),
        other_settings=other_settings(first, second),
        damage=pairing(first, second),
    )


def _chosen(reports: Sequence[RunReport], metric: str | None, k: int | None) -> list[tuple[str, int]]:
    """(ranking, k) of what is compared: what at least two runs have."""
    by_metric = {
        name: having
        for name in dict.fromkeys(name for report in reports for name in report.metrics)
        if name != GIVEN and len(having := [report for report in reports if name in report.metrics]) > 1
    }
    if metric is not None and metric not in by_metric:
        shared = ", ".join(by_metric) or "none"
        raise InvalidInput(
            f"no two of the runs have a ranking by '{metric}'", hint=f"rankings that they share: {shared}"
        )
    return [
        (name, size) for name, having in by_metric.items() if metric in (None, name) for size in _sizes(name, having, k)
    ]


def _sizes(metric: str, reports: Sequence[RunReport], k: int | None) -> list[int]:
    """The k at which rankings are compared: what was asked for, else those that all have, else the smallest of the largest."""
    depth = min(report.spec.largest_k for report in reports)
    if k is None:
        return sorted(set.intersection(*(set(report.spec.topk) for report in reports))) or [depth]
    if not 1 <= k <= depth:
        raise InvalidInput(
            f"k {k} is not in the rankings by {metric}", hint=f"they have {depth} places: give 1 to {depth}"
        )
    return [k]


def _have(metric: str, k: int, *reports: RunReport) -> bool:
    return all(metric in report.metrics and top(report, metric, k) for report in reports)


def ranking_overlap(
    first: RunReport, second: RunReport, metric: str, k: int, other_metric: str | None = None
) -> RankingOverlap:
    """What the top k of two runs have in common, which must rank things of one kind (see `other_weights`).

    With `other_metric` the second run's ranking is by another metric; both may be of one run.
    """
    names = metric, other_metric or metric
    lists = [top(report, name, k) for report, name in zip((first, second), names, strict=True)]
    ours, theirs = ([weight.target for weight in weights] for weights in lists)
    shared = set(ours) & set(theirs)
    places = [{weight.target: weight.rank for weight in weights} for weights in lists]
    ranks = [np.array([place[target] for target in shared], dtype=np.float64) for place in places]
    one_list = first.spec.scope == "global"
    tau = kendall(*ranks) if len(shared) > 1 else None
    units = [_ranked_units(report, name) for report, name in zip((first, second), names, strict=True)]
    population, overall, within, unknown = _by_chance(first.spec.scope, units, lists, len(shared))
    return RankingOverlap(
        metric=metric,
        k=k,
        first=first.run_id,
        second=second.run_id,
        of_first=len(ours),
        of_second=len(theirs),
        common=len(shared),
        jaccard=jaccard(ours, theirs),
        rbo=rank_biased_overlap(ours, theirs) if one_list else None,
        population=population,
        expected=overall.expected if overall else None,
        p_value=overall.p_value if overall else None,
        expected_within=within.expected if within else None,
        p_within=within.p_value if within else None,
        unknown=unknown,
        spearman=spearman(*ranks) if one_list else None,
        kendall=tau if one_list else None,
        kendall_p=kendall_p(tau, len(shared)) if one_list and tau is not None else None,
    )


_By = tuple[int | None, ChanceOverlap | None, ChanceOverlap | None, str]


def _ranked_units(report: RunReport, metric: str) -> dict[str, int]:
    """How many units of each parameter a metric chose from; empty for a run of an early version."""
    return {row.parameter: row.units for row in report.ranked if metric in row.metrics}


def _by_chance(
    scope: str, units: Sequence[Mapping[str, int]], lists: Sequence[Sequence[TopWeight]], common: int
) -> _By:
    """(units that were ranked, overlap by chance among all of them, within each parameter, what is not known and why)."""
    if not all(units):
        return None, None, None, "a run of an early version does not say how many weights it ranked"
    ours, theirs = (Counter(weight.parameter for weight in weights) for weights in lists)
    shared = [name for name in units[0] if name in units[1]]
    within = overlap_by_chance(common, (Stratum(units[0][n], ours[n], theirs[n]) for n in shared))
    if units[0] != units[1]:
        return None, None, within, "the runs ranked other parameters, by --include or --exclude"
    population = sum(units[0].values())
    if scope != "global":
        return population, None, within, f"the top k is taken {scope}, not of all weights together"
    overall = overlap_by_chance(common, [Stratum(population, ours.total(), theirs.total())])
    return population, overall, within, ""


def _profiles(reports: Sequence[RunReport], metric: str, k: int, by: str) -> dict[str, list[ProfileShare]]:
    """Run id -> its shares, of the runs that have them."""
    having = [report for report in reports if metric in report.metrics]
    parts = parts_of(by, having, metric, k)
    rows = {report.run_id: list(profile(report, metric, k, by, parts)) for report in having}
    return {run: shares for run, shares in rows.items() if shares}
