"""The critical weights of a run: growing while it is scored, all of them once it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cwa_engine.rows import TopWeight
from cwa_tui.store.followed_run import RankingHead
from cwa_tui.store.state import SelectedRun
from cwa_tui.tables.columns import Column
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.ranking import COLUMNS, RankingRows
from cwa_tui.tables.rows import TableRow
from cwa_tui.text import format as fmt
from cwa_tui.widgets.row_table import RowTable

TOPK_COLUMNS = (
    Column("rank", "rank", 5, right=True),
    Column("target", "weight [out,in]", 24, most=44, cut="weight", least=20),
    Column("value", "value", 10, right=True),
    Column("score", "score", 9, right=True),
    Column("layer", "layer", 5, right=True, optional=1),
    Column("component", "component", 9, optional=2),
    Column("standard_error", "± score", 9, right=True, hidden=True),
    Column("fan_out", "read by", 7, right=True, hidden=True),
    Column("expert", "expert", 6, right=True, hidden=True),
    Column("out_feature", "out", 6, right=True, hidden=True),
    Column("in_feature", "in", 6, right=True, hidden=True),
    Column("parameter", "parameter", 30, most=50, cut="weight", hidden=True),
    Column("stable", "stable", 6, hidden=True),
)
NAMES_LOOKED_AT = 2000  # for the width of their column
LONGEST_WHOLE = 46  # names up to this length stand whole at 80 columns


def ranking_columns(ranking: RankingRows) -> Sequence[Column]:
    """The columns of a ranking: as wide as its ranks and names, and those of estimates and experts where it has them."""
    some = range(min(len(ranking), NAMES_LOOKED_AT))
    longest = max((len(ranking.value(place, "target")) for place in some), default=0) + 2  # and a sign of stability
    widths = {"rank": max(4, len(f"{len(ranking):,}")), "target": max(15, min(longest, LONGEST_WHOLE))}
    known = {
        name for name in ("standard_error", "expert") if any(ranking.value(place, name) is not None for place in some)
    }
    return [
        replace(
            column,
            width=widths.get(column.key, column.width),
            most=longest if column.key == "target" else column.most,
            hidden=column.hidden and column.key not in known,
            optional=3 if column.key in known else column.optional,
        )
        for column in TOPK_COLUMNS
    ]


@dataclass(frozen=True)
class RankingSource:
    """A ranking as rows of a table. Keys are places from 1 on: the ranks, where the top of all weights was taken together."""

    ranking: RankingRows
    order: Sequence[int]
    columns: Sequence[Column] = TOPK_COLUMNS

    @property
    def total(self) -> int:
        return len(self.ranking)

    def __len__(self) -> int:
        return len(self.order)

    def row(self, place: int) -> TableRow:
        return _row(self.order[place] + 1, self.ranking[self.order[place]])

    def place_of(self, key: str) -> int | None:
        at = int(key) - 1 if key.isdigit() else -1
        if isinstance(self.order, range):
            return at if at in self.order else None
        return next((place for place, known in enumerate(self.order) if known == at), None)

    def arranged(self, sorting: Sorting | None, text: str) -> RankingSource:
        return RankingSource(self.ranking, self.ranking.order(sorting, text), self.columns)


class TopkTable(RowTable):
    """The ranking of one metric, one weight a row."""

    COLUMNS = TOPK_COLUMNS

    ranking: RankingRows | None = None  # all that is known of it, whatever is filtered
    _shown: RankingRows | RankingHead | None = None

    def show_ranking(self, selected: SelectedRun | None, metric: str | None, whole: RankingRows | None = None) -> None:
        """Show the run's ranking by the metric: the whole of it, or its head as long as there is no more."""
        head = selected.run.rankings.get(metric) if selected and metric else None
        self.retitle(topk_title(selected, metric, head, whole))
        rows = whole if whole is not None else head
        if rows is None:
            self._shown = self.ranking = None
            self.show([], nothing=_nothing(selected))
        elif rows is not self._shown:
            self._shown = rows
            ranking = self.ranking = rows if isinstance(rows, RankingRows) else RankingRows.of(rows.weights)
            columns = ranking_columns(ranking)
            self.show(RankingSource(ranking, range(len(ranking)), columns), nothing=_nothing(selected))


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


def _row(place: int, weight: TopWeight) -> TableRow:
    cells = {
        "rank": f"{weight.rank:,}",
        "target": f"{weight.target} {fmt.STABLE}" if weight.stable else weight.target,
        "value": fmt.number(weight.value),
        "score": "-" if weight.score is None else fmt.number(weight.score),
        "layer": _known(weight.layer),
        "component": weight.component,
        "standard_error": fmt.standard_error(weight.standard_error),
        "fan_out": _known(weight.fan_out),
        "expert": _known(weight.expert),
        "out_feature": _known(weight.out_feature),
        "in_feature": _known(weight.in_feature),
        "parameter": weight.parameter,
        "stable": {True: "yes", False: "no", None: "-"}[weight.stable],
    }
    return TableRow(str(place), cells, values={name: getattr(weight, name) for name in COLUMNS})


def _known(number: int | None) -> str:
    return "-" if number is None else str(number)


def _nothing(selected: SelectedRun | None) -> str:
    if selected is None:
        return "no run is selected"
    if selected.job and selected.job.kind != "run":
        return "this job ranks no weights"
    if selected.run.status.ended:
        return f"the run is {selected.run.status.state}, and nothing was scored before that"
    return "weights appear while the model is scored"
