"""`stability`: would other texts, seeds, dtypes or sequence lengths have named the same weights? torch-free."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL
from cwa_engine.base.statistics import t975
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.curves import DamageDifference
from cwa_engine.studies.analysis.consistency import concordance, least_blocks
from cwa_engine.studies.analysis.pairs import (
    MODEL,
    AxisPair,
    PairOverlap,
    axes_of,
    differences_of,
    draws_nothing,
    metrics_of,
    overlaps_of,
    pairs_of,
    shares_texts,
)
from cwa_engine.studies.analysis.words import counted, figure, listed
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study

RULE = (
    "Two runs of one model are a pair of an axis where they differ in its value alone. Of the top k of both, at the largest k, "
    "the shared weights stand beside those of random sets with as many weights of each parameter; they are more than chance "
    f"where p <= {LEVEL} over the number of the axis' pairs. Pairs whose rankings are the same by construction (a metric "
    "that draws nothing, on another seed; the same scoring texts) are left out. An axis moves the ranking most where "
    "every pair of it shares less than every pair of all others, and there are so many pairs that by chance some axis does "
    f"so with p <= {LEVEL}. What two "
    "halves of one run's scoring texts share is the measure of what texts alone do. Damage differs where the 95 % interval of "
    "a pair's difference leaves out 0, widened for all pairs of the axis (Bonferroni): paired by text where both measured the "
    "same texts, else as of unrelated texts."
)
NO_AXIS = ("metrics", "topk", "structure", "scope", "include", "exclude", "weights", "matrices")


@dataclass(frozen=True, slots=True)
class StabilityAxis:
    """How far rankings and damage move along one axis: a bar of the figure.

    Shared weights are over `pairs` that tell something. `halves` is what the halves of one run's scoring texts share.
    `between` is the standard deviation of the damage of runs that differ along the axis alone, `within` the root mean square
    of their standard errors. None where there is nothing to count.
    """

    metric: str
    k: int
    axis: str
    values: int
    pairs: int
    left_out: int  # pairs that tell nothing new
    shared: float | None
    least: int | None
    most: int | None
    expected: float | None  # by chance within parameters, or among all ranked weights
    more_than_chance: int | None  # pairs
    rbo: float | None
    halves: float | None
    between: float | None
    within: float | None
    other_damage: int  # pairs of which the damage differs clearly
    damage_pairs: int


@dataclass(frozen=True, slots=True)
class StabilityPair:
    """Two runs that differ along one axis alone. Overlap as in `RankingOverlap`, the difference as in `DamageDifference`."""

    axis: str
    model: str
    others: str
    first: str
    second: str
    metric: str
    k: int
    common: int
    expected: float | None
    p_value: float | None
    expected_within: float | None
    p_within: float | None
    rbo: float | None
    kendall: float | None
    nothing_new: str


@dataclass(frozen=True, slots=True)
class StabilityDifference:
    """How much more the first run's critical set raises the loss than the second's; the interval is one of all pairs."""

    axis: str
    model: str
    others: str
    first: str
    second: str
    metric: str
    k: int
    perturbation: str
    difference: float
    low: float
    high: float
    unit: str
    paired: bool
    reasons: str


AXES = Table("stability.csv", StabilityAxis)
PAIRS = Table("stability_pairs.csv", StabilityPair)
DIFFERENCES = Table("stability_damage.csv", StabilityDifference)


@dataclass(frozen=True)
class OnAxis:
    """All pairs of one axis by one metric."""

    row: StabilityAxis
    overlaps: tuple[PairOverlap, ...]
    told: tuple[PairOverlap, ...]  # those that tell something
    differences: tuple[StabilityDifference, ...]


def answer(runs: Sequence[StudyRun]) -> Answer:
    """How far rankings and damage move along each axis, see `RULE`."""
    pairs = pairs_of(runs)
    axes = [axis for axis in axes_of(runs) if any(pair.axis == axis for pair in pairs)]
    found = [
        on_axis
        for metric in metrics_of(runs)
        for axis in axes
        if (on_axis := _on_axis(runs, [pair for pair in pairs if pair.axis == axis], metric, axis))
    ]
    return Answer(
        "stability",
        _sentence(found) if found or not pairs else "no two runs have a ranking of the same weights",
        findings=tuple(finding for of_metric in _by_metric(found) for finding in _findings(of_metric)),
        tables=(
            TableRows(AXES, [entry.row for entry in found]),
            TableRows(PAIRS, [_pair_row(one) for entry in found for one in entry.overlaps]),
            TableRows(DIFFERENCES, [row for entry in found for row in entry.differences]),
        ),
        refused=tuple(_refused(runs, found)),
        rule=RULE,
    )


def _by_metric(found: Sequence[OnAxis]) -> list[list[OnAxis]]:
    names = dict.fromkeys(entry.row.metric for entry in found)
    return [[entry for entry in found if entry.row.metric == name] for name in names]


# what is counted


def _on_axis(runs: Sequence[StudyRun], pairs: Sequence[AxisPair], metric: str, axis: str) -> OnAxis | None:
    overlaps = list(overlaps_of(pairs, metric))
    if not overlaps:
        return None
    k = max(entry.overlap.k for entry in overlaps)
    told = [entry for entry in overlaps if not entry.nothing_new]
    differences = [_difference_row(*entry) for entry in differences_of(pairs, metric, k)]
    numbers = {of.cell.number for pair in pairs for of in (pair.first, pair.second)}
    members = [run for run in runs if run.cell.number in numbers]
    between, within = _spread(pairs, metric, k)
    halves = [
        half.common for run in members for half in run.report.summary.halves if (half.metric, half.k) == (metric, k)
    ]
    row = StabilityAxis(
        metric=metric,
        k=k,
        axis=axis,
        values=len({value for pair in pairs for value in pair.values}),
        pairs=len(overlaps),
        left_out=len(overlaps) - len(told),
        shared=_mean([entry.overlap.common for entry in told]),
        least=min((entry.overlap.common for entry in told), default=None),
        most=max((entry.overlap.common for entry in told), default=None),
        expected=_mean([entry.overlap.by_chance[0] for entry in told]),
        more_than_chance=sum(_is_more_than_chance(entry, len(told)) for entry in told) if told else None,
        rbo=_mean([entry.overlap.rbo for entry in told]),
        halves=_mean(halves),
        between=between,
        within=within,
        other_damage=sum(row.low > 0 or row.high < 0 for row in differences),
        damage_pairs=len(differences),
    )
    return OnAxis(row, tuple(overlaps), tuple(told), tuple(differences))


def _is_more_than_chance(entry: PairOverlap, pairs: int) -> bool:
    p = entry.overlap.by_chance[1]
    return p is not None and p <= LEVEL / pairs


def _spread(pairs: Sequence[AxisPair], metric: str, k: int) -> tuple[float | None, float | None]:
    """(standard deviation between runs that differ along the axis alone, root mean square of their standard errors)."""
    lines: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for pair in pairs:
        for run in (pair.first, pair.second):
            for point in run.report.damage:
                if (point.metric, point.k, point.selection) != (metric, k, "critical") or point.collapsed_at:
                    continue
                if point.perturbation == run.report.spec.perturbations[0] and np.isfinite(point.delta_high):
                    reach = (1 + 2 / point.sequences) * t975(point.sequences - 1)  # of the interval, in standard errors
                    error = (point.delta_high - point.delta_nll) / reach
                    lines.setdefault((pair.model, pair.others), {})[run.cell.number] = point.delta_nll, error
    of_lines = [list(line.values()) for line in lines.values() if len(line) > 1]
    if not of_lines:
        return None, None
    variances = [statistics.variance([damage for damage, _ in line]) for line in of_lines]
    errors = [error**2 for line in of_lines for _, error in line]
    return statistics.fmean(variances) ** 0.5, statistics.fmean(errors) ** 0.5


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _pair_row(entry: PairOverlap) -> StabilityPair:
    pair, row = entry.pair, entry.overlap
    return StabilityPair(
        pair.axis, pair.model, pair.others, *pair.values, row.metric, row.k, row.common, row.expected, row.p_value,
        row.expected_within, row.p_within, row.rbo, row.kendall, entry.nothing_new,
    )  # fmt: skip


def _difference_row(pair: AxisPair, row: DamageDifference, interval: tuple[float, float, float]) -> StabilityDifference:
    return StabilityDifference(
        pair.axis, pair.model, pair.others, *pair.values, row.metric, row.k, row.perturbation, *interval, row.unit,
        row.paired, "; ".join(row.reasons),
    )  # fmt: skip


def shares_least(of_metric: Sequence[OnAxis]) -> tuple[OnAxis, float] | None:
    """(the axis of which every pair shares less than every pair of each other axis, how likely some axis does so by chance)."""
    known = [entry for entry in of_metric if entry.told]
    if len(known) < 2:
        return None
    first = min(known, key=lambda entry: max(one.share for one in entry.told))
    others = [one.share for entry in known if entry is not first for one in entry.told]
    if max(one.share for one in first.told) >= min(others):
        return None
    by_chance = sum(1 / math.comb(len(first.told) + len(others), len(entry.told)) for entry in known)
    return first, by_chance


# words


def _sentence(found: Sequence[OnAxis]) -> str:
    if not found:
        return "no two runs of a model differ in one value alone, so nothing is known of the stability of a ranking"
    of_metric = _by_metric(found)[0]
    metric, k = of_metric[0].row.metric, of_metric[0].row.k
    told = [entry for entry in of_metric if entry.told]
    if not told:
        return (
            f"nothing is learned of the stability of the top {k:,} by {metric}: {of_metric[0].overlaps[0].nothing_new}"
        )
    said = f"of the top {k:,} by {metric} two runs share {listed([_shared(entry.row) for entry in told])}"
    if (least := shares_least(of_metric)) is not None:
        axis, p = least[0].row.axis, least[1]
        if p <= LEVEL:
            return f"{said}; of these axes {axis} moves the ranking most"
        return f"{said}; that {axis} moves the ranking most is not concluded from so few pairs"
    return said + ("; no axis moves the ranking clearly more than all others" if len(told) > 1 else "")


def _shared(row: StabilityAxis) -> str:
    spread = f" ({row.least} to {row.most})" if row.least != row.most else ""
    chance = f" ({row.expected:.2g} by chance)" if row.expected is not None else ""
    return f"{row.shared:.3g}{spread} with another {row.axis}{chance}"


def _findings(of_metric: Sequence[OnAxis]) -> Iterator[Finding]:
    for entry in of_metric:
        row = entry.row
        if entry.told:
            yield Finding(
                f"{row.metric}, {row.axis}: of the top {row.k:,} two runs share {_shared(row)}, over "
                f"{counted(len(entry.told), 'pair')}; {_against_chance(entry)}{_against_halves(entry)}",
                f"another value of {row.axis} with which fewer than {row.least} are shared",
            )
        if entry.told and entry.differences:
            yield _damage_finding(entry)


def _against_chance(entry: OnAxis) -> str:
    if entry.row.expected is None:
        return "what chance gives is not known, for the runs are of an early version"
    more, pairs = entry.row.more_than_chance, len(entry.told)
    if more == pairs:
        return "in each that is more than chance explains"
    return f"in {pairs - (more or 0)} of them no agreement beyond chance was found"


def _against_halves(entry: OnAxis) -> str:
    """The axis beside what half of the scoring texts does."""
    row = entry.row
    if row.halves is None or row.least is None or row.most is None:
        return ""
    than = "less than" if row.least > row.halves else "more than" if row.most < row.halves else "about as much as"
    return f"; two halves of one run's scoring texts share {row.halves:.3g}, so it moves the ranking {than} halving the texts"


def _damage_finding(entry: OnAxis) -> Finding:
    row = entry.row
    clear = [one for one in entry.differences if one.low > 0 or one.high < 0]
    largest = max(clear or entry.differences, key=lambda one: abs(one.difference))
    what = f"{row.metric}, {row.axis}: the damage by the top {row.k:,}"
    how = "paired by text" if largest.paired else "as of unrelated texts"
    figures = f"{figure(largest.difference, largest.low, largest.high)} {largest.unit}, {how}"
    spread = ""
    if row.between is not None and row.within is not None:
        spread = f"; runs scatter by {row.between:.2g}, and one has a standard error of {row.within:.2g}"
    if clear:
        said = f"differs in {len(clear)} of {counted(row.damage_pairs, 'pair')}, at most by {figures}"
    else:
        said = f"does not differ clearly in any of {counted(row.damage_pairs, 'pair')}; the largest difference is {figures}"
    return Finding(f"{what} {said}{spread}", "more texts, by which the intervals become shorter" if not clear else
                   "other texts, on which the interval of the largest difference has 0")  # fmt: skip


def _refused(runs: Sequence[StudyRun], found: Sequence[OnAxis]) -> Iterator[str]:
    for entry in found:
        reasons = dict.fromkeys(one.nothing_new for one in entry.overlaps if one.nothing_new)
        for reason in reasons:
            count = sum(one.nothing_new == reason for one in entry.overlaps)
            yield f"{entry.row.metric}, {entry.row.axis}: {counted(count, 'pair')} told nothing new, as {reason}"
        if any(shares_texts(one.pair) for one in entry.told):
            yield f"{entry.row.metric}, {entry.row.axis}: the texts are from one source, and some may be the same in both runs"
    for of_metric in _by_metric(found):
        if (least := shares_least(of_metric)) is not None and least[1] > LEVEL:
            yield (
                f"{of_metric[0].row.metric}: all pairs with another {least[0].row.axis} share less than all others, but there "
                f"are so few that one axis does so by chance with p = {least[1]:.2g}: give more values"
            )
    yield from _across_models(runs, found)
    for run in runs:
        for point in run.report.damage:
            if point.selection == "critical" and point.collapsed_at:
                yield (
                    f"{run.cell.label}: with the top {point.k:,} by {point.metric} damaged by {point.perturbation} the loss is "
                    f"not finite, so its damage is in no figure"
                )
        if not any(run in (pair.first, pair.second) for pair in pairs_of(runs)):
            yield f"{run.cell.label}: no other run differs from it in one value alone"


def _across_models(runs: Sequence[StudyRun], found: Sequence[OnAxis]) -> Iterator[str]:
    """What is not known of other models: the order of the axes."""
    for of_metric in _by_metric(found):
        told = [entry for entry in of_metric if entry.told]
        if len(told) < 2:
            continue
        models = sorted({one.pair.model for entry in told for one in entry.told})
        least = least_blocks(len(told))
        if len(models) < least:
            yield (
                f"whether the same axis moves the ranking by {of_metric[0].row.metric} most in other models: that takes at "
                f"least {least} models for {len(told)} axes"
            )
            continue
        means = [[_mean([o.share for o in e.told if o.pair.model == model]) or 0.0 for e in told] for model in models]
        agreed = concordance(np.array(means))
        if agreed is not None and not agreed.is_clear:
            yield f"no order of the axes was found that the {len(models)} models have in common ({agreed})"


def check(study: Study) -> None:
    """Raises InvalidInput for a study in which nothing varies along which a ranking may be stable."""
    if bad := [name for name in study.grid if name in NO_AXIS]:
        raise InvalidInput(
            f"{bad[0]} says what is ranked, so rankings by other values are other lists",
            hint=f"give {bad[0]} in [run], and vary seed, dtype, seq_len, data_file or dataset in [grid]",
        )
    axes = [name for name, values in study.grid.items() if len(values) > 1 and name not in MODEL]
    if not axes:
        raise InvalidInput(
            "nothing varies but the model, so nothing can be said of stability",
            hint="give two or more values of seed, dtype, seq_len, data_file, dataset or eval_limit in [grid]",
        )

    metrics = study.shared.get("metrics", ())
    if axes == ["seed"] and metrics and all(draws_nothing(name) for name in metrics):
        raise InvalidInput(
            f"{listed(list(metrics))} draws nothing by the seed, so every seed gives the same ranking",
            hint="vary seq_len, dtype, data_file or dataset, or rank by a metric that draws: obd, taylor or hutchinson_diag",
        )


QUESTION = StudyQuestion(
    name="stability",
    place=5,
    asks="Would other texts, seeds, dtypes or sequence lengths have named the same weights?",
    needs="a model, and two or more values of what may vary: seed, dtype, seq_len, data_file, dataset",
    check=check,
    answer=answer,
    run={"metrics": ("grad_x_weight",), "topk": (100,)},
)
