"""The critical weights of a run: growing while it is scored, all of them once it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.rows import TopWeight
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.filters import Sorting
from cwa_tui.followed_run import RankingHead
from cwa_tui.ranking import COLUMNS, RankingRows
from cwa_tui.rows import TableRow
from cwa_tui.state import SelectedRun
from cwa_tui.widgets.row_table import RowTable

TOPK_COLUMNS = (
    Column("rank", "rank", 6, right=True),
    Column("target", "weight [out,in]", 31, most=56, cut="parts"),
    Column("value", "value", 10, right=True),
    Column("score", "score", 9, right=True),
    Column("layer", "layer", 5, right=True, optional=1),
    Column("component", "component", 9, optional=2),
)


@dataclass(frozen=True)
class RankingSource:
    """A ranking as rows of a table. Keys are ranks."""

    ranking: RankingRows
    order: Sequence[int]
    columns: Sequence[Column] = TOPK_COLUMNS

    @property
    def total(self) -> int:
        return len(self.ranking)

    def __len__(self) -> int:
        return len(self.order)

    def row(self, place: int) -> TableRow:
        return _row(self.ranking[self.order[place]])

    def place_of(self, key: str) -> int | None:
        at = self.ranking.place_of_rank(int(key)) if key.isdigit() else None
        if at is None or isinstance(self.order, range):
            return at
        return next((place for place, known in enumerate(self.order) if known == at), None)

    def arranged(self, sorting: Sorting | None, text: str) -> RankingSource:
        return RankingSource(self.ranking, self.ranking.order(sorting, text), self.columns)


class TopkTable(RowTable):
    """The ranking of one metric, one weight a row."""

    COLUMNS = TOPK_COLUMNS

    _shown: RankingRows | RankingHead | None = None

    def show_ranking(self, selected: SelectedRun | None, metric: str | None, whole: RankingRows | None = None) -> None:
        """Show the run's ranking by the metric: the whole of it, or its head as long as there is no more."""
        head = selected.run.rankings.get(metric) if selected and metric else None
        self.retitle(topk_title(selected, metric, head, whole))
        rows = whole if whole is not None else head
        if rows is None:
            self._shown = None
            self.show([], nothing=_nothing(selected))
        elif rows is not self._shown:
            self._shown = rows
            ranking = rows if isinstance(rows, RankingRows) else RankingRows.of(rows.weights)
            self.show(RankingSource(ranking, range(len(ranking))), nothing=_nothing(selected))


def topk_title(
    selected: SelectedRun | None, metric: str | None, head: RankingHead | None, whole: RankingRows | None
) -> str:
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
    if head and whole is None and asked > len(head.weights):
        return f"{title} · first {len(head.weights):,} of {asked:,}"
    return title


def _row(weight: TopWeight) -> TableRow:
    cells = {
        "rank": f"{weight.rank:,}",
        "target": f"{weight.target} {fmt.STABLE}" if weight.stable else weight.target,
        "value": fmt.number(weight.value),
        "score": "-" if weight.score is None else fmt.number(weight.score),
        "layer": "-" if weight.layer is None else str(weight.layer),
        "component": weight.component,
    }
    return TableRow(str(weight.rank), cells, values={name: getattr(weight, name) for name in COLUMNS})


def _nothing(selected: SelectedRun | None) -> str:
    if selected is None:
        return "no run is selected"
    if selected.job and selected.job.kind != "run":
        return "this job ranks no weights"
    if selected.run.status.ended:
        return f"the run is {selected.run.status.state}, and nothing was scored before that"
    return "weights appear while the model is scored"
