"""`--critical-set`: how few weights, zeroed together, multiply perplexity by a factor? torch-free until it is measured.

The scoring texts choose the weights, among the most harmful single ones; what they do is measured on the evaluation texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.events import Progress
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.questions.ablation import Ablated
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import exp, to_plain

if TYPE_CHECKING:
    from cwa_engine.result import RunResult
    from cwa_engine.run import RunContext

POOL = 50  # of the most harmful single weights, from which a critical set is put together


@dataclass(frozen=True, slots=True)
class CriticalSetStep:
    """A set of the critical set's search: the weights of the steps so far, all zeroed together.

    `scoring_ratio` is the perplexity ratio on the scoring texts, which chose the weights; the other figures are of the
    evaluation texts.
    """

    size: int
    target: str  # which this step added
    scoring_ratio: float
    delta_nll: float
    delta_low: float
    delta_high: float
    perplexity_ratio: float


@dataclass(frozen=True, slots=True)
class CriticalSet:
    """The answer: the smallest set found whose zeroing multiplies perplexity by `factor`.

    It is not `reached` where no set found does.
    """

    factor: float
    reached: bool
    steps: tuple[CriticalSetStep, ...]


def find_critical_set(run: RunContext, findings: Findings) -> CriticalSet:
    """The smallest set found by the scoring texts, with what it does to the evaluation texts."""
    from cwa_engine.damage.measurement import measure
    from cwa_engine.damage.smallest_set import smallest_set
    from cwa_engine.damage.treatments import ZERO
    from cwa_engine.methods.controls import critical_set

    context, loaded, factor = findings.measurement, run.loaded, run.spec.critical_set
    assert factor
    pool = findings.result.answer(Ablated).finalists[:POOL]
    found = smallest_set(loaded, findings.scoring, pool, factor, run.spec.seed, run.emit)

    def tick(done: int) -> None:
        run.emit(Progress(QUESTION.stage, len(found), len(pool), "weight"))

    steps = []
    for size, (unit, ratio) in enumerate(found, start=1):
        weights = critical_set([unit for unit, _ in found[:size]], loaded.anatomy.parameters)
        delta = context.delta(measure(context, weights, ZERO, report=tick).evaluation)
        steps.append(CriticalSetStep(size, unit.target, ratio, *delta, exp(delta[0])))
    reached = bool(found) and found[-1][1] >= factor
    return CriticalSet(factor, reached, tuple(steps))


def critical_set_sentence(found: CriticalSet) -> str:
    """How few weights it takes, or how far all of them go."""
    if not found.steps:
        said = "no weight was measured"
    else:
        few = f"{len(found.steps)} weight{'s' * (len(found.steps) != 1)}"
        said = f"{few} multiply perplexity by {found.steps[-1].scoring_ratio:,.4g} on the scoring texts"
    return said if found.reached else f"{said}: less than {found.factor:g}, and no weight is left to add"


TABLE = Table("critical_set.csv", CriticalSetStep)


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if found := result.get(CriticalSet):
        yield TableRows(TABLE, found.steps)


def _summary(result: RunResult) -> JsonMap:
    found = result.get(CriticalSet)
    return {"critical_set": to_plain(found) if found else None}


QUESTION = StageQuestion(
    name="critical_set",
    place=500,
    asks="How few weights, zeroed together, multiply perplexity by a factor?",
    asked=lambda spec: bool(spec.critical_set),
    stage="critical set",
    moment=Moment.DAMAGED,
    answer=find_critical_set,
    tables=_tables,
    summary=_summary,
    sentence=critical_set_sentence,
)
