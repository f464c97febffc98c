"""Measured damage: the critical set of each k, and the draws of its controls in short, or one by one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from textual.binding import Binding, BindingType

from cwa_engine.base.p_values import shown_p
from cwa_engine.rows import MATRICES, DamagePoint, Separation, exp, leading_draw
from cwa_tui.store.state import AskedRun, SelectedRun
from cwa_tui.tables.columns import Column
from cwa_tui.tables.rows import Rows, TableRow
from cwa_tui.text import format as fmt
from cwa_tui.widgets.damage_curve import CRITICAL
from cwa_tui.widgets.row_table import RowTable

BEYOND = "> 1e308"  # `fmt.NOT_FINITE` in a narrow column: exp of a finite loss that no float holds

_Group = tuple[str, int, str]  # metric, k, perturbation


class DamageTable(RowTable):
    """For each critical set one row, and for each of its controls the leading draw and the median of its draws.

    It shows the metric in view; `a` shows all of them, `d` every draw. Metric and perturbation have columns where there
    are several.
    """

    COLUMNS = (
        Column("metric", "metric", 6, most=15),
        Column("perturbation", "change", 6, most=14),
        Column("k", "k", 1, right=True),  # as wide as the largest one
        Column("selection", "selection", 14, most=18, cut="middle"),
        Column("draw", "draw", 7),
        Column("delta", "Δ nats", 9, right=True),
        Column("interval", "95 % interval", 18, most=20, optional=1),
        Column("ratio", "ratio", 8, right=True),
        Column("p", "p", 5, right=True, optional=2),
        Column("texts", "texts", 5, right=True, optional=3),
        Column("perplexity", "perplexity", 10, right=True, optional=4),
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "draws", "Draws"),
        Binding("a", "all_metrics", "All metrics", show=False),
    ]

    @dataclass
    class DrawsChanged(RowTable.About):
        pass

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.with_draws = False
        self._with_all = False
        self._shown: tuple[SelectedRun | None, str | None] = (None, None)
        self._drawn_from: tuple[Any, ...] = ()

    def show_damage(self, selected: SelectedRun | None, metric: str | None) -> None:
        """Show what was measured of a metric."""
        self._shown = selected, metric
        seen = selected and (selected.run.damage, selected.asked, selected.run.status.state, selected.report is None)
        now = (seen, metric, self.with_draws, self._with_all)
        if now == self._drawn_from:
            return
        self._drawn_from = now
        points = measured_points(selected) if selected else ()
        if not self._with_all:
            points = [point for point in points if point.metric == metric]
        known = selected.report.separations if selected and selected.report else ()
        asked = (selected and selected.asked) or _NOTHING_ASKED
        columns = self._columns(asked, points)
        rows = _every_draw(points) if self.with_draws else _in_short(points, known)
        self.expected_rows = 0 if self.with_draws or (selected and selected.report) else _rows_to_come(asked)
        self.show(Rows(columns, list(rows)), nothing=_nothing(selected))

    def _columns(self, asked: AskedRun, points: Sequence[DamagePoint]) -> list[Column]:
        """The columns that tell these points apart; what all have in common is in the title."""
        metrics = dict.fromkeys(point.metric for point in points)
        perturbations = dict.fromkeys([*asked.perturbations, *(point.perturbation for point in points)])
        titles, columns = ["damage"], {column.key: column for column in self.COLUMNS}
        columns["k"] = replace(columns["k"], width=max((len(str(k)) for k in asked.topk), default=1))
        if self.with_draws:  # a draw alone has no p
            del columns["p"]
        for key, found in (("metric", metrics), ("perturbation", perturbations)):
            if len(found) < 2:
                del columns[key]
                titles += map(_metric_name, found)
        self.retitle(" · ".join([*titles, *["every draw"] * self.with_draws]))
        return list(columns.values())

    def action_draws(self) -> None:
        """Show every draw of the controls, or what they come to; the chart shows them too, or does not."""
        self.with_draws = not self.with_draws
        self.show_damage(*self._shown)
        self.post_message(self.DrawsChanged(self))

    def action_all_metrics(self) -> None:
        self._with_all = not self._with_all
        self.show_damage(*self._shown)


def measured_points(selected: SelectedRun) -> Sequence[DamagePoint]:
    """All that a finished run measured, by its files; of one that goes on what its events told so far."""
    return selected.report.damage if selected.report else tuple(selected.run.damage.values())


_NOTHING_ASKED = AskedRun((), False, (), (), (), "", None, False, False)


def _rows_to_come(asked: AskedRun) -> int:
    """Rows of one metric in short when all is measured: of each critical set its own, and two of each control."""
    return len(asked.topk) * len(asked.perturbations) * (1 + 2 * len(asked.controls))


def _every_draw(points: Iterable[DamagePoint]) -> Iterable[TableRow]:
    return (_row(point, "" if point.seed is None else f"seed {point.seed}") for point in points)


def _in_short(points: Sequence[DamagePoint], known: Sequence[Separation]) -> Iterable[TableRow]:
    """Of each critical set its own row, and two of each control."""
    separations = {(row.metric, row.k, row.perturbation, row.control): row for row in known}
    groups: dict[_Group, dict[str, list[DamagePoint]]] = {}
    for point in points:
        selections = groups.setdefault((point.metric, point.k, point.perturbation), {})
        selections.setdefault(point.selection, []).append(point)
    for group, selections in groups.items():
        for name, draws in selections.items():
            if name == CRITICAL:
                yield _row(draws[0], "")
                continue
            separation = separations.get((*group, name))
            yield _row(leading_draw(draws), "leading", p_value=separation.p_value if separation else None)
            if len(draws) > 1:
                yield _median_row(draws, separation)


def _median_row(draws: Sequence[DamagePoint], known: Separation | None) -> TableRow:
    """The median of all draws, as the run's files have it; until that is known, of those so far."""
    changes = [draw.delta_nll if math.isfinite(draw.delta_nll) else math.inf for draw in draws]
    median = statistics.median(changes)
    if known:
        median = math.inf if known.median is None else known.median
    first, finite = draws[0], math.isfinite(median)
    count = f"of {known.draws if known else len(draws)}" + ("" if known else " so far")
    figures = {
        "delta": fmt.short_delta(median) if finite else "collapsed",
        "interval": count,
        "ratio": fmt.ratio(exp(median)) if finite else "-",
        "p": "",
        "texts": "",  # each draw has its own
        "perplexity": "",
    }
    values = {**_identity(first, "median"), "k": first.k, "delta": median, "ratio": exp(median) if finite else None}
    return TableRow(_key(first, "median"), {**_identity(first, "median"), **figures}, "dim", values=values)


def _row(point: DamagePoint, draw: str, p_value: float | None = None) -> TableRow:
    cells = {
        **_identity(point, draw),
        **_measured(point),
        "p": "" if p_value is None else shown_p(p_value),
        "texts": f"{point.sequences:,}" if point.sequences else "",
    }
    values = {
        "metric": point.metric,
        "k": point.k,
        "delta": point.delta_nll,
        "interval": fmt.interval(point.delta_low, point.delta_high),
        "ratio": point.perplexity_ratio,
        "perplexity": point.perplexity,
        "p": p_value,
        "texts": point.sequences or None,
    }
    return TableRow(_key(point, draw), cells, "bold" if point.selection == CRITICAL else "", values=values)


def _key(point: DamagePoint, draw: str) -> str:
    return "/".join((point.metric, point.perturbation, str(point.k), point.selection, draw))


def _identity(point: DamagePoint, draw: str) -> dict[str, str]:
    return {
        "metric": _metric_name(point.metric),
        "perturbation": point.perturbation,
        "k": str(point.k),
        "selection": point.selection,
        "draw": draw,
    }


def _metric_name(label: str) -> str:
    """A ranking in a narrow column, where long names lose their end."""
    return f"matrices, {label.removesuffix(MATRICES)}" if label.endswith(MATRICES) else label


def _measured(point: DamagePoint) -> dict[str, str]:
    if point.collapsed_at:
        return {"delta": "collapsed", "interval": f"at {point.collapsed_at}", "ratio": "-", "perplexity": "collapsed"}
    known = math.isfinite(point.delta_low) and math.isfinite(point.delta_high)  # one text has no interval
    interval = f"[{fmt.short_delta(point.delta_low)}, {fmt.short_delta(point.delta_high)}]" if known else ""
    return {
        "delta": fmt.short_delta(point.delta_nll) if math.isfinite(point.delta_nll) else BEYOND,
        "interval": interval,
        "ratio": fmt.ratio(point.perplexity_ratio) if math.isfinite(point.perplexity_ratio) else BEYOND,
        "perplexity": fmt.perplexity(point.perplexity) if math.isfinite(point.perplexity) else BEYOND,
    }


def _nothing(selected: SelectedRun | None) -> str:
    if selected is None:
        return "no run is selected"
    if selected.asked is None:
        return "this job measures no damage"
    if not selected.asked.measures_damage:
        return "no damage was asked for: this run only ranks"
    if selected.run.status.ended:
        return f"the run is {selected.run.status.state}, and no damage was measured before that"
    return "damage is measured once the ranking is known"
