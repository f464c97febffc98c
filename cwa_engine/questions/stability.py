"""`--stability`: would other texts have named the same weights? torch-free until it is computed."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import to_plain

if TYPE_CHECKING:
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.result import RunResult
    from cwa_engine.rows import Ranking
    from cwa_engine.run import RunContext
    from cwa_engine.sensitivity.repeats import Repeat
    from cwa_engine.spec import RunSpec


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two repeats of a ranking, by other texts, agree. `first` and `second` number the repeats from 1.

    `chance` is the Jaccard index that random sets of this size would have. `spearman` is over one random sample of all
    ranked units, not over the top alone. None for figures that are not defined.
    """

    metric: str
    k: int
    first: int
    second: int
    jaccard: float
    chance: float
    rbo: float
    spearman: float | None


@dataclass(frozen=True, slots=True)
class StabilityMean:
    """How far rankings by other texts agree, as means over all pairs of repeats. Figures as in `Agreement`."""

    metric: str
    k: int
    pairs: int
    jaccard: float
    chance: float
    rbo: float
    spearman: float | None
    in_every_repeat: int  # weights


@dataclass(frozen=True)
class Stability:
    """The answer: every pair of repeats, and the targets that are in the list of every repeat, by metric."""

    agreements: tuple[Agreement, ...]
    always: Mapping[str, frozenset[str]]


def compare_repeats(run: RunContext, findings: Findings) -> Stability:
    """Score and rank by the texts of every repeat, and compare the rankings."""
    from cwa_engine.sensitivity.repeats import rank_repeats

    found = rank_repeats(run, findings.scoring, QUESTION.stage)
    always = {
        metric: frozenset.intersection(*(_targets(repeat.ranking) for repeat in repeats))
        for metric, repeats in found.items()
    }
    return Stability(tuple(_agreements(run.loaded, found, run.spec)), always)


def _targets(ranking: Ranking) -> frozenset[str]:
    return frozenset(weight.target for weight in ranking.weights)


def _agreements(loaded: LoadedModel, found: Mapping[str, Sequence[Repeat]], spec: RunSpec) -> Iterator[Agreement]:
    """Every pair of repeats at every k."""
    from cwa_engine.base.statistics import jaccard, jaccard_by_chance, rank_biased_overlap, spearman
    from cwa_engine.models.structures import unit_count

    for metric, repeats in found.items():
        pairs = list(itertools.combinations(enumerate(repeats, start=1), 2))
        for k in spec.topk:
            for (number, first), (other, second) in pairs:
                ours, theirs = ([weight.target for weight in repeat.ranking.top(k)] for repeat in (first, second))
                units = sum(unit_count(loaded.anatomy.parameters[p], spec.structure) for p in first.ranking.parameters)
                yield Agreement(
                    metric=metric,
                    k=k,
                    first=number,
                    second=other,
                    jaccard=jaccard(ours, theirs),
                    chance=jaccard_by_chance(len(ours), units),
                    rbo=rank_biased_overlap(ours, theirs),
                    spearman=spearman(first.scores, second.scores),
                )


def marked(answer: Stability, rankings: tuple[Ranking, ...]) -> tuple[Ranking, ...]:
    """The rankings that were repeated with every unit marked that is in the list of every repeat."""
    return tuple(
        _marked(ranking, answer.always[ranking.metric]) if ranking.metric in answer.always else ranking
        for ranking in rankings
    )


def _marked(ranking: Ranking, always: frozenset[str]) -> Ranking:
    weights = tuple(dataclasses.replace(weight, stable=weight.target in always) for weight in ranking.weights)
    return dataclasses.replace(ranking, weights=weights)


def stability_means(rankings: Sequence[Ranking], rows: Sequence[Agreement]) -> list[StabilityMean]:
    """Means over all pairs of repeats, per metric and k."""
    found = []
    for (metric, k), members in itertools.groupby(rows, key=lambda row: (row.metric, row.k)):
        pairs = list(members)
        correlations = [pair.spearman for pair in pairs if pair.spearman is not None]
        ranking = next(ranking for ranking in rankings if ranking.metric == metric)
        found.append(
            StabilityMean(
                metric=metric,
                k=k,
                pairs=len(pairs),
                jaccard=statistics.fmean(pair.jaccard for pair in pairs),
                chance=pairs[0].chance,
                rbo=statistics.fmean(pair.rbo for pair in pairs),
                spearman=statistics.fmean(correlations) if correlations else None,
                in_every_repeat=sum(weight.stable is True for weight in ranking.top(k)),
            )
        )
    return found


TABLE = Table("stability.csv", Agreement)


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if (found := result.get(Stability)) and found.agreements:
        yield TableRows(TABLE, found.agreements)


def _summary(result: RunResult) -> JsonMap:
    found = result.get(Stability)
    return {"stability": to_plain(stability_means(result.rankings, found.agreements if found else ()))}


QUESTION = StageQuestion(
    name="stability",
    place=200,
    asks="Would other texts have named the same weights?",
    asked=lambda spec: bool(spec.stability),
    stage="stability",
    moment=Moment.RANKED,
    answer=compare_repeats,
    tables=_tables,
    summary=_summary,
    rankings=marked,
)
