"""What the damage did: the critical set of each k, and the controls it is fairly compared with."""

from __future__ import annotations

from dataclasses import replace

from cwa_daemon.protocol import JobView
from cwa_engine.rows import MATRICES
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.state import Row, RunState
from cwa_tui.widgets.live_table import LiveTable, TableRow

BEYOND = "> 1e308"  # `fmt.NOT_FINITE` in a narrow column: exp of a finite loss that no float holds


class DamageTable(LiveTable):
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

    def show_run(self, run: RunState | None, job: JobView | None) -> None:
        points = list(run.damage.values()) if run else []
        spec = job.spec if job and job.kind == "run" else {}
        # What is ranked beside what was asked for, the matrices of blocks, is known when it is measured.
        found = {name: {*spec.get(plural, ()), *(p[name] for p in points)} for name, plural in _SEVERAL.items()}
        one = {name: len(values) < 2 for name, values in found.items()}
        widest_k = max((len(str(k)) for k in spec.get("topk", ())), default=1)
        columns = [
            replace(column, width=widest_k) if column.key == "k" else column
            for column in self.COLUMNS
            if not one.get(column.key)
        ]
        titles = [str(spec[plural][0]) for name, plural in _SEVERAL.items() if one[name] and spec.get(plural)]
        self.retitle(" · ".join(["damage", *titles]))
        self.show([_row(point) for point in points], nothing=_nothing(run, spec), columns=columns)


_SEVERAL = {"metric": "metrics", "perturbation": "perturbations"}  # column -> field of the spec


def _row(point: Row) -> TableRow:
    seed = "" if point["seed"] is None else f" {point['seed']}"
    selection = f"{point['selection']}{seed}"
    case = {name: str(point[name]) for name in ("metric", "perturbation", "k")} | {"selection": selection}
    style = "bold" if point["selection"] == "critical" else ""
    shown = {"metric": _metric_name(point["metric"])}
    return TableRow("/".join(case.values()), case | shown | _measured(point), style)


def _metric_name(label: str) -> str:
    """A ranking in a narrow column, where long names lose their end."""
    return f"matrices, {label.removesuffix(MATRICES)}" if label.endswith(MATRICES) else label


def _measured(point: Row) -> dict[str, str]:
    if point["collapsed_at"]:
        return {"perplexity": "collapsed", "delta": f"at {point['collapsed_at']}", "ratio": "-"}
    perplexity, ratio = point["perplexity"], point["perplexity_ratio"]
    return {
        "perplexity": BEYOND if perplexity is None else fmt.perplexity(perplexity),
        "delta": _delta(point["delta_nll"], point["delta_low"], point["delta_high"]),
        "ratio": BEYOND if ratio is None else fmt.ratio(ratio),
    }


def _delta(delta: float | None, low: float | None, high: float | None) -> str:
    if delta is None:
        return fmt.NOT_FINITE
    interval = "" if low is None or high is None else f" [{fmt.short_delta(low)}, {fmt.short_delta(high)}]"
    return fmt.short_delta(delta) + interval


def _nothing(run: RunState | None, spec: Row) -> str:
    if run is None:
        return "no run is selected"
    if not spec:
        return "this job measures no damage"
    if not (spec["perturbations"] or spec["dose"] or spec["position_test"]):
        return "no damage was asked for: this run only ranks"
    if run.ended:
        return f"the run is {run.state}, and no damage was measured before that"
    return "damage is measured once the ranking is known"
