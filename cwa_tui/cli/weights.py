"""The ranked weights of a run for `cwtool results topk`: any number of them, filtered and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.plain import from_plain
from cwa_engine.exchange.formats import export
from cwa_engine.rows import TopWeight, to_plain
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.ranking import COLUMNS, RankingRows

if TYPE_CHECKING:
    from cwa_daemon.client import Client

PAGE = 10_000  # weights in one reply
# From the smallest: places, and names from a to z. Other columns are sorted from the largest.
_ASCENDING = ("rank", "layer", "flat_index", "out_feature", "in_feature", "expert", "parameter", "component", "target")


@dataclass(frozen=True, slots=True)
class Order:
    """Which weights in which order: as ranked, of a column, turned around, only those that match."""

    column: str = "rank"
    reverse: bool = False
    words: str = ""

    def __post_init__(self) -> None:
        if self.column not in COLUMNS:
            raise InvalidInput(
                f"weights have no column '{self.column}'",
                hint=did_you_mean(self.column, COLUMNS) or f"sort by {', '.join(COLUMNS)}",
            )

    @property
    def as_ranked(self) -> bool:
        return self.column == "rank" and not self.reverse and not self.words.strip()


def ranked(
    client: Client, run_id: str, metric: str | None, order: Order, offset: int, limit: int
) -> tuple[str, Sequence[TopWeight], int | None]:
    """(metric, weights, how many there are in all, if that is known) of a run's ranking."""
    if order.as_ranked and limit < PAGE:
        name, rows = client.topk(run_id, metric, offset, limit + 1)
        found = [from_plain(TopWeight, row) for row in rows[:limit]]
        return name, found, None if len(rows) > limit else offset + len(found)
    report = client.report(run_id)  # of which the whole table is read, once
    weights = report.topk(metric)
    sorting = None if order.as_ranked else Sorting(order.column, (order.column in _ASCENDING) == order.reverse)
    places = RankingRows.of(weights).order(sorting, order.words)
    return metric or report.metrics[0], [weights[place] for place in places[offset : offset + limit]], len(places)


def plain(weights: Sequence[TopWeight]) -> list[Any]:
    """The weights as JSON has them."""
    return [to_plain(weight) for weight in weights]


def csv(weights: Sequence[TopWeight]) -> str:
    """The weights as CSV, with the columns of the run's own table, and exact numbers."""
    return export(COLUMNS, ([getattr(weight, name) for name in COLUMNS] for weight in weights), "csv")
