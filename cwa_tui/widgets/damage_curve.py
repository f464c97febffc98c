"""What a damage chart draws, from plain rows: series over k, and in words what cannot be drawn. No Textual in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.rows import DamagePoint, leading_draw

CRITICAL = "critical"
MARKERS = "○×□+◇*#"  # of controls, in their order


@dataclass(frozen=True, slots=True)
class ChartPoint:
    """A change of the loss in nats per token, with its 95 % interval where there is one."""

    k: int
    delta: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """The critical sets, or of one control the leading draw of each k; `draws` are all its draws."""

    name: str
    marker: str
    points: tuple[ChartPoint, ...]
    draws: tuple[ChartPoint, ...] = ()
    collapsed: tuple[int, ...] = ()  # each k at which a loss is not finite


@dataclass(frozen=True, slots=True)
class DamageCurve:
    """The series of one metric and perturbation."""

    series: tuple[Series, ...]

    @property
    def ks(self) -> list[int]:
        return sorted({k for row in self.series for k in (*(point.k for point in row.points), *row.collapsed)})

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest change that is drawn, intervals and zero included."""
        ends = [0.0]
        for row in self.series:
            for point in (*row.points, *row.draws):
                ends += [point.delta, *(end for end in (point.low, point.high) if end is not None)]
        return min(ends), max(ends)

    @property
    def not_drawn(self) -> str:
        """Which points have no place on the chart, in one sentence; empty where all have."""
        said = [f"{row.name} at k {', '.join(map(str, row.collapsed))}" for row in self.series if row.collapsed]
        return f"beyond a float, drawn as ^ at the top: {'; '.join(said)}" if said else ""


def damage_curve(points: Sequence[DamagePoint], metric: str, perturbation: str) -> DamageCurve:
    """The series of a metric's critical sets under one perturbation, and of every control measured beside them."""
    here = [point for point in points if (point.metric, point.perturbation) == (metric, perturbation)]
    controls = [name for name in dict.fromkeys(point.selection for point in here) if name != CRITICAL]
    found = []
    for place, name in enumerate([CRITICAL, *controls]):
        marker = "●" if name == CRITICAL else MARKERS[(place - 1) % len(MARKERS)]
        mine = [point for point in here if point.selection == name]
        finite = [point for point in mine if _is_finite(point)]
        collapsed = {point.k for point in mine if not _is_finite(point)}  # there the leading draw is one that collapsed
        if mine:
            found.append(
                Series(
                    name=name,
                    marker=marker,
                    points=tuple(_leading(finite, k) for k in sorted({point.k for point in finite} - collapsed)),
                    draws=() if name == CRITICAL else tuple(ChartPoint(p.k, p.delta_nll) for p in finite),
                    collapsed=tuple(sorted(collapsed)),
                )
            )
    return DamageCurve(tuple(found))


def _is_finite(point: DamagePoint) -> bool:
    return math.isfinite(point.delta_nll) and not point.collapsed_at


def _leading(points: Sequence[DamagePoint], k: int) -> ChartPoint:
    point = leading_draw([point for point in points if point.k == k])
    known = math.isfinite(point.delta_low) and math.isfinite(point.delta_high)
    return ChartPoint(k, point.delta_nll, point.delta_low if known else None, point.delta_high if known else None)


def largest_leading(draws: Sequence[DamagePoint]) -> DamagePoint:
    """Of the leading draws of several controls the one with most change. How many texts each took tells nothing of that."""
    controls = dict.fromkeys(draw.selection for draw in draws)
    leading = (leading_draw([draw for draw in draws if draw.selection == name]) for name in controls)
    return max(leading, key=lambda draw: draw.size)
