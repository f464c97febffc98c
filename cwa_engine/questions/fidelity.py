"""`--fidelity`: do scores predict what zeroing a weight costs? torch-free until it is measured.

Units from all levels of every metric's scores are zeroed one by one, and their scores compared with the measured changes of
the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.events import Progress
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import SAMPLED_TOP, Ranking, to_plain

if TYPE_CHECKING:
    from cwa_engine.result import RunResult
    from cwa_engine.run import RunContext


@dataclass(frozen=True, slots=True)
class Prediction:
    """One sampled unit: what each metric says of it, and the measured loss change of zeroing it alone."""

    target: str
    stratum: str
    delta_nll: float
    delta_low: float
    delta_high: float
    scores: tuple[float | None, ...]  # in the order of the run's metrics; None for what a metric does not rank


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a metric predicts the measured |loss change| over the sample."""

    metric: str
    units: int
    spearman: float | None
    top: int  # how many are compared
    overlap: int  # of the `top` best by score among the `top` most harmful


@dataclass(frozen=True)
class Predictions:
    """The answer: the sampled units, and how well each metric predicts what they cost."""

    rows: tuple[Prediction, ...]
    fidelity: tuple[Fidelity, ...]


def measure_predictions(run: RunContext, findings: Findings) -> Predictions:
    """Zero each sampled unit alone, on the evaluation texts."""
    from cwa_engine.damage.curves import damage_units
    from cwa_engine.damage.treatments import ZERO

    context, sample = findings.measurement, findings.sample
    assert sample
    ranking = Ranking("sample", sample.units, structure=sample.structure)
    rows = []
    for place, unit in enumerate(sample.units):
        run.emit(Progress(QUESTION.stage, place, len(sample.units), "weight"))
        damaged = damage_units(context, ranking, [unit], ZERO)
        scores = tuple(of_metric[place] for of_metric in sample.scores.values())
        rows.append(Prediction(unit.target, sample.strata[place], *context.delta(damaged), scores))
    run.emit(Progress(QUESTION.stage, len(sample.units), len(sample.units), "weight"))
    return Predictions(tuple(rows), tuple(fidelities(rows, run.spec.scored_metrics)))


def fidelities(rows: Sequence[Prediction], metrics: Sequence[str]) -> list[Fidelity]:
    """Rank correlation of each metric's scores with the measured |loss change|, and the overlap of the top."""
    import numpy as np

    from cwa_engine.base.statistics import spearman

    found = []
    for place, name in enumerate(metrics):
        scored = [(row.scores[place], abs(row.delta_nll)) for row in rows if row.scores[place] is not None]
        scores, changes = np.array(scored, dtype=np.float64).reshape(-1, 2).T
        changes = np.where(np.isfinite(changes), changes, np.inf)
        top = min(SAMPLED_TOP, len(scored))
        best, worst = ({int(i) for i in np.argsort(-side, kind="stable")[:top]} for side in (scores, changes))
        found.append(Fidelity(name, len(scored), spearman(scores, changes), top, len(best & worst)))
    return found


def fidelity_table(metrics: Iterable[str]) -> Table[Prediction]:
    """The sampled units, with a column for the scores of each metric."""
    return Table("fidelity.csv", Prediction, tuple(metrics))


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if (found := result.get(Predictions)) and found.rows:
        yield TableRows(fidelity_table(fidelity.metric for fidelity in found.fidelity), found.rows)


def _summary(result: RunResult) -> JsonMap:
    found = result.get(Predictions)
    return {"fidelity": to_plain(found.fidelity) if found else []}


QUESTION = StageQuestion(
    name="fidelity",
    place=300,
    asks="Do the scores of a metric predict what zeroing a weight costs?",
    asked=lambda spec: bool(spec.fidelity),
    stage="fidelity",
    moment=Moment.DAMAGED,
    answer=measure_predictions,
    tables=_tables,
    summary=_summary,
)
