"""What a comparison of runs comes to, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.methods.metrics import METRICS
from cwa_engine.records.compared import Comparison, RankingOverlap, RunPair
from cwa_engine.records.curves import DamageDifference
from cwa_engine.records.differences import NATS, Difference
from cwa_engine.records.profiles import COMPONENT, ProfileDistance
from cwa_engine.rows import MATRICES, exp

R = TypeVar("R", RankingOverlap, DamageDifference, ProfileDistance)


def sentences(found: Comparison) -> Iterator[str]:
    """The answer at the largest k: of rankings, damage, and where the weights are. First what is not compared, and why."""
    yield from limits(found)
    yield from (_overlap(found, row) for row in _largest(found.overlaps))
    yield from (_damage(found, row) for row in _largest(found.damage_differences))
    for pair in found.pairs:
        yield from _distances(found, pair)


def limits(found: Comparison) -> Iterator[str]:
    """What is not compared of each pair of runs, and why."""
    for pair in found.pairs:
        yield from _limits(found, pair)


def _largest(rows: Sequence[R]) -> list[R]:
    """Of the rows of each ranking those of its largest k."""
    most: dict[str, int] = {}
    for row in rows:
        most[row.metric] = max(row.k, most.get(row.metric, 0))
    return [row for row in rows if row.k == most[row.metric]]


def differing(found: Comparison) -> str:
    """In what the runs differ, in one line: what matters most first."""
    said = [
        f"{entry.what} texts" if entry.what in ("scored", "measured") else entry.what
        for entry in found.differences
        if not _is_detail(entry, found.differences)
    ]
    return f"the runs differ in {_listed(said)}" if said else "the runs differ in nothing that they were asked for"


def _is_detail(entry: Difference, others: tuple[Difference, ...]) -> bool:
    """Whether a difference follows from another that is named: the files of another model, tokens of other texts."""
    named = {other.what for other in others}
    return (entry.what in ("files", "weights", "vocabulary", "revision") and "model" in named) or (
        entry.what == "tokens measured" and bool({"model", "measured", "protocol"} & named)
    )


def _limits(found: Comparison, pair: RunPair) -> Iterator[str]:
    both = _both(found, pair.first, pair.second)
    if pair.other_rankings:
        yield f"{both}: rankings are not compared, as {pair.other_rankings}"
    elif pair.other_weights:
        yield f"{both}: not compared weight by weight, as {pair.other_weights}; components and depth are compared"
    for perturbation, reasons in pair.other_settings.items():
        yield (
            f"{both}: {perturbation} is not the same in both, so its curves must not be read against each other: "
            + "; ".join(reasons)
        )
    damaged = {level.run for level in found.damage}
    if not {pair.first, pair.second} <= damaged:
        return
    if pair.damage.reasons:
        yield (
            f"{both}: damage was not measured alike, so curves must not be read against each other"
            f"{'' if found.forced else ', and no difference is given'}: {'; '.join(pair.damage.reasons)}"
        )
    elif pair.other_measuring:
        yield (
            f"{both}: curves in nats per token must not be read against each other ({'; '.join(pair.other_measuring)}); "
            f"the difference of damage is in {pair.damage.unit}"
        )


def _overlap(found: Comparison, row: RankingOverlap) -> str:
    both = _both(found, row.first, row.second)
    size = f"{row.of_first:,}" if row.of_first == row.of_second else f"{row.of_first:,} and {row.of_second:,}"
    said = f"{both} share {row.common:,} of the top {size} by {row.metric}"
    if row.expected is not None:
        said += f"; random sets of the {row.population:,} ranked share {row.expected:.2g} ({p_text(row.p_value)})"
    if row.expected_within is not None:
        said += f", with as many from each parameter {row.expected_within:.2g} ({p_text(row.p_within)})"
        if row.p_within is not None and row.p_within > LEVEL:
            said += ": no more than the parameters they are from explain"
    if row.unknown:
        said += f"; what chance gives is not known in full, as {row.unknown}"
    pair = next(pair for pair in found.pairs if (pair.first, pair.second) == (row.first, row.second))
    if pair.same_model and not _reads_texts(row.metric):
        said += f"; {row.metric.removesuffix(MATRICES)} reads no texts, so one model has one ranking"
    elif pair.same_scoring:
        said += "; both scored the same texts, so this says nothing of other texts"
    elif pair.same_source:
        said += "; their texts are from one source, some may be the same, so this says little of other texts"
    return said


def _reads_texts(metric: str) -> bool:
    name = metric.removesuffix(MATRICES)
    return name not in METRICS or bool(METRICS[name].needs)


def _damage(found: Comparison, row: DamageDifference) -> str:
    first, second = found.label(row.first), found.label(row.second)
    figures = f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}] {row.unit}, on {row.texts} texts"
    what = f"{row.perturbation} of the top {row.k:,} by {row.metric}"
    if row.reasons:
        what = f"forced, although {', '.join(row.reasons)}: {what}"
        figures += ", text by text" if row.paired else ", as of unrelated texts"
    if not row.is_clear:
        return f"{what}: no clear difference between {first} and {second}: {figures}"
    more = "more" if row.difference > 0 else "less"
    said = f"{what} raises the loss {more} in {first} than in {second}: {figures}"
    return said if row.unit != NATS else f"{said}, a factor of {exp(abs(row.difference)):.3g} in perplexity"


def _distances(found: Comparison, pair: RunPair) -> Iterator[str]:
    """Which profiles clearly differ; the others together."""
    rows = [r for r in _largest(found.distances) if (r.first, r.second) == (pair.first, pair.second)]
    clear = [row for row in rows if row.p_value <= LEVEL]
    both = _both(found, pair.first, pair.second)
    for row in clear:
        what = "components" if row.by == COMPONENT else "depths"
        apart = f"{row.distance:.0%} apart, by chance {row.expected:.0%} ({p_text(row.p_value)})"
        yield f"{both}: the top {row.k:,} by {row.metric} are from other {what}: {apart}"
    if len(clear) < len(rows):
        said = "otherwise the" if clear else "the"
        yield f"{both}: {said} components and depths of the top weights do not clearly differ"


def _both(found: Comparison, first: str, second: str) -> str:
    return f"{found.label(first)} and {found.label(second)}"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
