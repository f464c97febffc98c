"""The critical weights of the selected run, growing while it is scored."""

from __future__ import annotations

from cwa_engine.rows import TopWeight
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.followed_run import RankingHead
from cwa_tui.state import SelectedRun
from cwa_tui.widgets.live_table import LiveTable, TableRow


class TopkTable(LiveTable):
    """The ranking of one metric, one weight a row."""

    COLUMNS = (
        Column("rank", "rank", 4, right=True),
        Column("weight", "weight [out,in]", 31, most=56, cut="parts"),
        Column("value", "value", 10, right=True),
        Column("score", "score", 9, right=True),
        Column("layer", "layer", 5, right=True, optional=1),
        Column("component", "component", 9, optional=2),
    )

    def show_ranking(self, selected: SelectedRun | None, metric: str | None) -> None:
        """Show the run's ranking by the metric."""
        head = selected.run.rankings.get(metric) if selected and metric else None
        self.retitle(topk_title(selected, metric, head))
        self.show([_row(weight) for weight in head.weights] if head else [], nothing=_nothing(selected))


def topk_title(selected: SelectedRun | None, metric: str | None, head: RankingHead | None) -> str:
    """Which ranking it is and, while it grows, how many sequences it knows of."""
    if not (selected and metric):
        return "top weights"
    metrics = selected.metrics
    which = f" ({metrics.index(metric) + 1} of {len(metrics)}, m)" if len(metrics) > 1 else ""
    title = f"top weights · {metric}{which}"
    if head and head.partial:
        seen = head.seen
        return f"{title} · partial" + (f", after {seen.done} of {seen.total} {seen.unit}s" if seen else "")
    asked = max(selected.asked.topk) if selected.asked else 0
    if head and asked > len(head.weights):
        return f"{title} · first {len(head.weights)} of {asked}"
    return title


def _row(weight: TopWeight) -> TableRow:
    cells = {
        "rank": str(weight.rank),
        "weight": f"{weight.target} {fmt.STABLE}" if weight.stable else weight.target,
        "value": fmt.number(weight.value),
        "score": "-" if weight.score is None else fmt.number(weight.score),
        "layer": "-" if weight.layer is None else str(weight.layer),
        "component": weight.component,
    }
    return TableRow(weight.target, cells)


def _nothing(selected: SelectedRun | None) -> str:
    if selected is None:
        return "no run is selected"
    if selected.job and selected.job.kind != "run":
        return "this job ranks no weights"
    if selected.run.status.ended:
        return f"the run is {selected.run.status.state}, and nothing was scored before that"
    return "weights appear while the model is scored"
