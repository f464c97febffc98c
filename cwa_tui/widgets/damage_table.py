"""Measured damage: the critical set of each k, and the controls it is compared with."""

from __future__ import annotations

import math
from dataclasses import replace

from cwa_engine.rows import MATRICES, DamagePoint
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.rows import Rows, TableRow
from cwa_tui.state import AskedRun, SelectedRun
from cwa_tui.widgets.row_table import RowTable

BEYOND = "> 1e308"  # `fmt.NOT_FINITE` in a narrow column: exp of a finite loss that no float holds


class DamageTable(RowTable):
    """One measured case a row, in the order measured. Metric and perturbation have columns where there are several."""

    COLUMNS = (
        Column("metric", "metric", 8, most=15),
        Column("perturbation", "change", 6, most=14),
        Column("k", "k", 1, right=True),  # as wide as the largest one
        Column("selection", "selection", 16, most=19, cut="middle"),
        Column("perplexity", "perplexity", 10, right=True, optional=1),
        Column("delta", "Δ nats [95 % interval]", 26, most=28, cut="parts"),
        Column("ratio", "ratio", 8, right=True, optional=2),
    )

    def show_damage(self, selected: SelectedRun | None) -> None:
        points = list(selected.run.damage.values()) if selected else []
        asked = (selected and selected.asked) or _NOTHING_ASKED
        # rankings of matrices are measured although nobody asked for them; their points name them
        metrics = {*asked.metrics, *(point.metric for point in points)}
        perturbations = {*asked.perturbations, *(point.perturbation for point in points)}
        titles, columns = ["damage"], {column.key: column for column in self.COLUMNS}
        columns["k"] = replace(columns["k"], width=max((len(str(k)) for k in asked.topk), default=1))
        for key, named, found in (
            ("metric", asked.metrics, metrics),
            ("perturbation", asked.perturbations, perturbations),
        ):
            if len(found) < 2:  # the title names it, so it needs no column
                del columns[key]
                titles += named
        self.retitle(" · ".join(titles))
        self.show(Rows(list(columns.values()), [_row(point) for point in points]), nothing=_nothing(selected))


_NOTHING_ASKED = AskedRun((), False, (), (), "", None, False, False)


def _row(point: DamagePoint) -> TableRow:
    seed = "" if point.seed is None else f" {point.seed}"
    case = {
        "metric": point.metric,
        "perturbation": point.perturbation,
        "k": str(point.k),
        "selection": f"{point.selection}{seed}",
    }
    style = "bold" if point.selection == "critical" else ""
    return TableRow("/".join(case.values()), case | {"metric": _metric_name(point.metric)} | _measured(point), style)


def _metric_name(label: str) -> str:
    """A ranking in a narrow column, where long names lose their end."""
    return f"matrices, {label.removesuffix(MATRICES)}" if label.endswith(MATRICES) else label


def _measured(point: DamagePoint) -> dict[str, str]:
    if point.collapsed_at:
        return {"perplexity": "collapsed", "delta": f"at {point.collapsed_at}", "ratio": "-"}
    return {
        "perplexity": fmt.perplexity(point.perplexity) if math.isfinite(point.perplexity) else BEYOND,
        "delta": _delta(point),
        "ratio": fmt.ratio(point.perplexity_ratio) if math.isfinite(point.perplexity_ratio) else BEYOND,
    }


def _delta(point: DamagePoint) -> str:
    if not math.isfinite(point.delta_nll):
        return fmt.NOT_FINITE
    delta, low, high = (fmt.short_delta(value) for value in (point.delta_nll, point.delta_low, point.delta_high))
    # one text has no interval
    return f"{delta} [{low}, {high}]" if math.isfinite(point.delta_low) and math.isfinite(point.delta_high) else delta


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
