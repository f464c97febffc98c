"""Where the top of a ranking lies: its shares by component and by depth, and how far those of two runs lie apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.overlap import share_distance
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import RankedParameter, TopWeight

COMPONENT, DEPTH = "component", "depth"
OUTSIDE = "outside the blocks"
QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")


@dataclass(frozen=True, slots=True)
class ProfileShare:
    """How many of a run's top k belong to a part of the model; `eligible` is the part's share of all that was ranked."""

    run: str
    metric: str
    k: int
    by: str  # COMPONENT or DEPTH
    part: str
    count: int
    share: float
    eligible: float | None  # None in runs of early versions, which do not say


@dataclass(frozen=True, slots=True)
class ProfileDistance:
    """Total variation distance between the shares of two runs, from 0 to 1, with its permutation test.

    `expected` is the mean of random divisions of both sets together, `p_value` the share of them that lie at least as far
    apart. The test takes weights to be drawn one by one; weights of one row tend to come together, which makes a small p
    less surprising than it looks.
    """

    metric: str
    k: int
    by: str
    first: str
    second: str
    distance: float
    expected: float
    p_value: float


def component_of(place: TopWeight | RankedParameter, layers: int) -> str:
    return place.component


def depth_of(place: TopWeight | RankedParameter, layers: int) -> str:
    """The quarter of the decoder blocks that a layer is in, by its middle."""
    return OUTSIDE if place.layer is None else QUARTERS[min(3, int(4 * (place.layer + 0.5) / layers))]


PARTS: dict[str, Callable[[TopWeight | RankedParameter, int], str]] = {COMPONENT: component_of, DEPTH: depth_of}


def parts_of(by: str, reports: Sequence[RunReport], metric: str, k: int) -> tuple[str, ...]:
    """The parts that any of the runs has; components by how much of the top they hold, depths from the first on."""
    if by == DEPTH:
        return (*QUARTERS, OUTSIDE)
    found = Counter(weight.component for report in reports for weight in top(report, metric, k))
    others = (row.component for report in reports for row in report.ranked if metric in row.metrics)
    return tuple(dict.fromkeys([*(part for part, _ in found.most_common()), *others]))


def profile(report: RunReport, metric: str, k: int, by: str, parts: Sequence[str]) -> Iterator[ProfileShare]:
    """The shares of a run's top k, a row for each part. Depth is not known of runs of early versions: they have no rows."""
    weights = top(report, metric, k)
    if not weights or (by == DEPTH and not report.layers):
        return
    counts = Counter(PARTS[by](weight, report.layers) for weight in weights)
    units: Counter[str] = Counter()
    for row in report.ranked:
        if metric in row.metrics:
            units[PARTS[by](row, report.layers)] += row.units
    everything = units.total()
    for part in parts:
        eligible = units[part] / everything if everything else None
        yield ProfileShare(report.run_id, metric, k, by, part, counts[part], counts[part] / len(weights), eligible)


def distance(first: Sequence[ProfileShare], second: Sequence[ProfileShare]) -> ProfileDistance:
    """How far two profiles by the same parts lie apart."""
    one = first[0]
    found = share_distance([row.count for row in first], [row.count for row in second])
    return ProfileDistance(
        one.metric, one.k, one.by, one.run, second[0].run, found.distance, found.expected, found.p_value
    )


def top(report: RunReport, metric: str, k: int) -> tuple[TopWeight, ...]:
    """The top k of a ranking, of each group of its scope."""
    return tuple(weight for weight in report.topk(metric) if weight.rank <= k)
