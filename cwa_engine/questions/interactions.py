"""`--individually`: does a weight of a critical set matter alone, or together with others? torch-free until it is measured.

Most published super weights do nothing alone, and much together; a damage of the whole set does not tell which. Each unit of
every critical set that was compared with controls is damaged alone, and the set without it. A unit matters where it makes a
tenth of an equal share of the set's damage, and the whole interval is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.events import Progress
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import to_plain

if TYPE_CHECKING:
    from cwa_engine.damage.measurement import MeasurementContext
    from cwa_engine.evaluation.losses import Evaluation
    from cwa_engine.result import RunResult
    from cwa_engine.rows import TopWeight
    from cwa_engine.run import RunContext

Delta = tuple[float, float, float]  # nats per token, with its 95 % interval


@dataclass(frozen=True, slots=True)
class Interaction:
    """One unit of a critical set: damaged alone, and the set damaged without it.

    `share` is what it adds to the set, delta of the set minus delta without it. Intervals are 95 %, paired per sequence.
    `role` is "alone" where its own damage matters (see `role_of`), "together" where only its share
    does, else "inert".
    """

    metric: str
    k: int
    perturbation: str
    target: str
    alone: float
    alone_low: float
    alone_high: float
    without: float
    share: float
    share_low: float
    share_high: float
    role: str


@dataclass(frozen=True)
class Interactions:
    """The answer: each unit of every critical set that has controls."""

    rows: tuple[Interaction, ...]


def measure_interactions(run: RunContext, findings: Findings) -> Interactions:
    """Damage every unit alone, once for each way of damage, and every set without each of its units."""
    from cwa_engine.damage.curves import damage_units

    context = findings.measurement
    rankings = {ranking.metric: ranking for ranking in findings.result.rankings}
    plan = [entry for entry in findings.measured if entry.critical and entry.treatment.has_controls]
    work = sum(2 * len(rankings[entry.comparison.metric].top(entry.comparison.k)) for entry in plan)
    alone: dict[tuple[str, str], Evaluation] = {}
    found: list[Interaction] = []
    for entry in plan:
        assert entry.critical
        ranking, treatment = rankings[entry.comparison.metric], entry.treatment
        joint = entry.critical.measured.evaluation
        units = ranking.top(entry.comparison.k)
        for place, unit in enumerate(units):
            run.emit(Progress(QUESTION.stage, 2 * len(found), work, "measurement"))
            key = treatment.label, unit.target
            if key not in alone:
                alone[key] = damage_units(context, ranking, [unit], treatment)
            others = [*units[:place], *units[place + 1 :]]
            without = damage_units(context, ranking, others, treatment) if others else context.intact
            found.append(_interaction(context, entry.group, unit, alone[key], without, joint))
    run.emit(Progress(QUESTION.stage, work, work, "measurement"))
    return Interactions(tuple(found))


def _interaction(
    context: MeasurementContext,
    group: tuple[str, int, str],
    unit: TopWeight,
    alone: Evaluation,
    without: Evaluation,
    joint: Evaluation,
) -> Interaction:
    own, share = context.delta(alone), context.delta(joint, without)
    rest, together = context.delta(without)[0], context.delta(joint)[0]
    role = role_of(own, share, rest, together, group[1], context.rounding)
    return Interaction(*group, unit.target, *own, rest, *share, role)


def role_of(alone: Delta, share: Delta, without: float, together: float, k: int, rounding: float) -> str:
    """ "alone", "together" or "inert", see `Interaction`.

    `without` is the change by the set without the unit, `together` that by the whole set of k, `rounding` the numerical
    floor.
    """
    least = max(rounding, together / (10 * k) if math.isfinite(together) else 0)
    if _is_loss(alone, least):
        return "alone"
    return "together" if _is_loss(share, least) and math.isfinite(without) else "inert"


def _is_loss(delta: Delta, least: float) -> bool:
    """Whether a loss is at least so large, and its whole interval above zero; one that is not finite is."""
    return not (delta[0] < least or delta[1] <= 0)


TABLE = Table("interactions.csv", Interaction)


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if (found := result.get(Interactions)) and found.rows:
        yield TableRows(TABLE, found.rows)


def _summary(result: RunResult) -> JsonMap:
    found = result.get(Interactions)
    return {"interactions": to_plain(found.rows) if found else []}


QUESTION = StageQuestion(
    name="interactions",
    place=100,
    asks="What does each critical weight do alone, and what does the set do without it?",
    asked=lambda spec: spec.individually and spec.damages,
    stage="interactions",
    moment=Moment.DAMAGED,
    answer=measure_interactions,
    tables=_tables,
    summary=_summary,
)
