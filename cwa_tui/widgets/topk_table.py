"""The critical weights of the selected run, growing while it is scored."""

from __future__ import annotations

from cwa_daemon.protocol import JobView
from cwa_engine.rows import GIVEN
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.state import Row, RunState, TopTable
from cwa_tui.widgets.live_table import LiveTable, TableRow


class TopkTable(LiveTable):
    """The ranking of one metric; `next_metric` goes to the run's next one."""

    COLUMNS = (
        Column("rank", "rank", 4, right=True),
        Column("weight", "weight [out,in]", 31, most=56, cut="parts"),
        Column("value", "value", 10, right=True),
        Column("score", "score", 9, right=True),
        Column("layer", "layer", 5, right=True, optional=1),
        Column("component", "component", 9, optional=2),
    )

    _metric: str | None = None

    def next_metric(self, run: RunState | None, job: JobView | None) -> None:
        metrics = metrics_of(run, job)
        if metrics:
            place = metrics.index(self._metric) if self._metric in metrics else 0
            self._metric = metrics[(place + 1) % len(metrics)]

    def show_run(self, run: RunState | None, job: JobView | None) -> None:
        metrics = metrics_of(run, job)
        if self._metric not in metrics:
            self._metric = metrics[0] if metrics else None
        table = run.rankings.get(self._metric) if run and self._metric else None
        self.retitle(topk_title(self._metric, table, metrics, job))
        self.show([_row(weight) for weight in table.weights] if table else [], nothing=_nothing(run, job))


def metrics_of(run: RunState | None, job: JobView | None) -> list[str]:
    """The rankings a job was asked for, weights that were given by name first, and those its run has made beside them."""
    asked = [GIVEN] * bool(job.spec["weights"]) + list(job.spec["metrics"]) if job and job.kind == "run" else []
    return [*asked, *(metric for metric in (run.rankings if run else ()) if metric not in asked)]


def topk_title(metric: str | None, table: TopTable | None, metrics: list[str], job: JobView | None) -> str:
    """What the ranking is, and, while it grows, of how many sequences it knows."""
    which = f" ({metrics.index(metric) + 1} of {len(metrics)}, m)" if metric and len(metrics) > 1 else ""
    title = f"top weights · {metric}{which}" if metric else "top weights"
    if table and table.partial:
        seen = table.seen
        return f"{title} · partial" + (f", after {seen.done} of {seen.total} {seen.unit}s" if seen else "")
    asked = max(job.spec["topk"]) if job else 0
    if table and asked > len(table.weights):
        return f"{title} · first {len(table.weights)} of {asked}"
    return title


def _row(weight: Row) -> TableRow:
    cells = {
        "rank": str(weight["rank"]),
        "weight": f"{weight['target']} {fmt.STABLE}" if weight["stable"] else weight["target"],
        "value": fmt.number(weight["value"]),
        "score": "-" if weight["score"] is None else fmt.number(weight["score"]),
        "layer": "-" if weight["layer"] is None else str(weight["layer"]),
        "component": weight["component"],
    }
    return TableRow(weight["target"], cells)


def _nothing(run: RunState | None, job: JobView | None) -> str:
    if run is None:
        return "no run is selected"
    if job and job.kind == "load":
        return "this job only loads a model"
    if run.ended:
        return f"the run is {run.state}, and nothing was scored before that"
    return "weights appear while the model is scored"
