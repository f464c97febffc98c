"""Which weights are measured exactly: those that rankings by scores name."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cwa_engine.rows import Ranking, TopWeight


def propose(rankings: Sequence[Ranking], candidates: int) -> list[TopWeight]:
    """In turns, each ranking names its best weight that none has named yet; one that is given twice has two turns a round.

    By place instead, rankings that agree would together name one weight where others name one each.
    """
    named: dict[str, TopWeight] = {}
    left = {ranking.metric: iter(ranking.weights) for ranking in rankings}
    turns = deque(ranking.metric for ranking in rankings)
    while turns and len(named) < candidates:
        metric = turns.popleft()
        fresh = next((unit for unit in left[metric] if unit.target not in named), None)
        if fresh:
            named[fresh.target] = fresh
            turns.append(metric)
    return list(named.values())
