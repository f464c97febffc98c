"""`--metric ablation`: which weights cost most when each alone is zeroed? torch-free until it is measured.

The candidates are the best weights by other metrics. They are measured on more and more scoring texts, and those that will not
be among the most harmful are dropped on the way (`damage.race`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import RunFailed
from cwa_engine.base.events import Emit, Progress, ignore
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.methods.metrics import ABLATION
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import Ranking, TopWeight, to_plain

if TYPE_CHECKING:
    from cwa_engine.base.statistics import Array
    from cwa_engine.damage.copies import Zeroed
    from cwa_engine.damage.race import Race
    from cwa_engine.damage.single_zeros import SingleZeros
    from cwa_engine.data.tokens import TokenSequence
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.result import RunResult
    from cwa_engine.run import RunContext

TOLERANCE = 1e-3  # of the NLL: how far a weight that counts as zero may be from one that was written as zero


@dataclass(frozen=True, slots=True)
class Ablation:
    """One candidate: the measured change of the scoring texts' loss when it alone is zeroed, with its 95 % interval.

    A candidate that was dropped was measured on some of the texts, and its figures are of those. `exact` marks those that
    were measured on all.
    """

    place: int  # among the candidates, the most harmful is 1
    target: str
    delta_nll: float  # nats per token; infinite where the model collapsed
    delta_low: float
    delta_high: float
    texts: int
    tokens: int
    exact: bool


@dataclass(frozen=True, slots=True)
class AblationRound:
    """How many candidates were measured on how many texts, those of the rounds before included.

    A weight of the token embedding may have been measured on one text more, see `damage.race`.
    """

    texts: int
    candidates: int


@dataclass(frozen=True, slots=True)
class AblationCost:
    """What the exact ranking took, in forward passes over all scoring texts."""

    candidates: int
    texts: int
    rounds: tuple[AblationRound, ...]
    spent: float
    naive: float  # one pass for each candidate, and one for the intact model


@dataclass(frozen=True)
class Ablated:
    """The answer: the exact ranking of the candidates."""

    ranking: Ranking
    finalists: tuple[TopWeight, ...]  # all that were measured on all texts, the most harmful first
    rows: tuple[Ablation, ...]
    cost: AblationCost


def ablate_candidates(run: RunContext, findings: Findings) -> Ablated:
    """Rank the candidates that the metrics name by turns."""
    from cwa_engine.sensitivity.candidates import propose

    spec = run.spec
    candidates = propose([findings.scored[name] for name in spec.turns], spec.candidates)
    return ablate(run.loaded, findings.scoring, candidates, spec.largest_k, spec.seed, run.emit)


def ablate(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    candidates: Sequence[TopWeight],
    k: int,
    seed: int,
    emit: Emit = ignore,
) -> Ablated:
    """Rank candidates by what zeroing each alone does to the loss of these texts.

    The best k are measured again with the weight written as zero: theirs are the figures that are published. Raises
    RunFailed where these differ from those of the race.
    """
    from cwa_engine.damage.race import race
    from cwa_engine.damage.single_zeros import SingleZeros, zeroed

    reached = [0, 1]

    def tick() -> None:
        emit(Progress(QUESTION.stage, reached[0], reached[1], "text"))

    def report(done: int, total: int) -> None:
        reached[:] = done, total
        tick()

    zeros = SingleZeros(loaded, sequences, tick)
    weights = [zeroed(loaded, unit) for unit in candidates]
    raced = race(zeros, weights, k, seed, report)
    change = raced.change.copy()
    for place in raced.finalists[:k]:
        change[place] = _checked(zeros, weights[place], candidates[place].target, raced.change[place])
    rows = _rows(zeros, candidates, change, raced)
    by_target = {unit.target: unit for unit in candidates}
    finalists = tuple(
        replace(by_target[row.target], rank=row.place, score=row.delta_nll, stable=None) for row in rows if row.exact
    )
    ranking = Ranking(ABLATION, finalists[:k], parameters=tuple(loaded.anatomy.parameters))
    rounds = tuple(AblationRound(each.texts, each.candidates) for each in raced.rounds)
    cost = AblationCost(len(candidates), len(zeros.texts), rounds, zeros.spent, len(candidates) + 1.0)
    return Ablated(ranking, finalists, rows, cost)


def _checked(zeros: SingleZeros, weight: Zeroed, target: str, raced: Array) -> Array:
    """The changes of the NLL sums by the weight itself written as zero. [texts]"""
    import numpy as np

    written = zeros.really_zeroed(weight) - zeros.intact
    written = np.where(np.isnan(written), np.inf, written)
    if not np.allclose(written, raced, rtol=0, atol=TOLERANCE * float(np.max(zeros.intact))):
        raise RunFailed(
            f"zeroing {target} in a copy of a batch changes the loss otherwise than writing a zero does",
            hint="please report this with the model's name; the other metrics do not depend on it",
        )
    return written


def _rows(zeros: SingleZeros, candidates: Sequence[TopWeight], change: Array, raced: Race) -> tuple[Ablation, ...]:
    """The candidates, those measured on all texts first."""
    import numpy as np

    from cwa_engine.base.statistics import paired_delta

    total, tokens = change.sum(1), zeros.tokens
    finalists = sorted(raced.finalists, key=lambda place: -total[place])
    dropped = sorted(set(range(len(candidates))) - set(finalists), key=lambda p: -_mean(change[p], tokens))
    found = []
    for number, place in enumerate([*finalists, *dropped], start=1):
        seen = ~np.isnan(change[place])
        intact = np.zeros(int(seen.sum()))
        delta = paired_delta(change[place][seen], intact, tokens[seen])
        found.append(
            Ablation(number, candidates[place].target, *delta, len(intact), int(tokens[seen].sum()), bool(seen.all()))
        )
    return tuple(found)


def _mean(change: Array, tokens: Array) -> float:
    import numpy as np

    seen = ~np.isnan(change)
    return float(change[seen].sum() / tokens[seen].sum())


def cost_sentence(cost: Mapping[str, Any]) -> str:
    """What an exact ranking took, by the fields of `AblationCost`."""
    rounds = ", ".join(f"{entry['candidates']:,} on {entry['texts']}" for entry in cost["rounds"])
    return (
        f"the exact ranking of {cost['candidates']:,} candidates took the work of {cost['spent']:,.1f} forward passes over "
        f"the {cost['texts']} scoring texts; one by one it takes {cost['naive']:,.0f}, {cost['naive'] / cost['spent']:.1f} "
        f"times as many (candidates on texts: {rounds})"
    )


TABLE = Table("ablation.csv", Ablation)


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if (found := result.get(Ablated)) and found.rows:
        yield TableRows(TABLE, found.rows)


def _summary(result: RunResult) -> JsonMap:
    found = result.get(Ablated)
    return {"ablation": to_plain(found.cost) if found else None}


QUESTION = StageQuestion(
    name="ablation",
    place=400,
    asks="Which weights cost most when each alone is zeroed?",
    asked=lambda spec: ABLATION in spec.metrics,
    stage="ablate",
    moment=Moment.RANKED,
    answer=ablate_candidates,
    tables=_tables,
    summary=_summary,
    sentence=lambda answer: cost_sentence(to_plain(answer.cost)),
    rankings=lambda answer, rankings: (*rankings, answer.ranking),
)
