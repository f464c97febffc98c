"""Interactions: what each unit of a critical set does alone, and what the set does without it.

Most published super weights do nothing alone, and much together; a damage of the whole set does not tell which.
"""

from __future__ import annotations

from collections.abc import Sequence

from cwa_engine.base.events import Emit, Progress
from cwa_engine.damage.cases import critical_weights
from cwa_engine.damage.measured import MeasuredComparison
from cwa_engine.damage.measurement import MeasurementContext, measure
from cwa_engine.damage.treatments import Treatment, sizes, treatments
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.questions.roles import role_of
from cwa_engine.rows import Interaction, Ranking, TopWeight


def measure_interactions(
    context: MeasurementContext, rankings: Sequence[Ranking], measured: Sequence[MeasuredComparison], emit: Emit
) -> list[Interaction]:
    """Each unit of every critical set that was compared with controls, damaged alone and left out."""
    plan = [
        (ranking, k, treatment)
        for ranking in rankings
        for k in sizes(ranking.metric, len(ranking.weights), context.spec)
        for treatment in treatments(context.spec, context.loaded.dtype)
        if treatment.has_controls
    ]
    work = sum(2 * len(ranking.top(k)) for ranking, k, _ in plan)
    alone: dict[tuple[str, str], Evaluation] = {}
    found: list[Interaction] = []
    for ranking, k, treatment in plan:
        group = ranking.metric, k, treatment.label
        joint = next(m.critical.measured.evaluation for m in measured if m.group == group and m.critical)
        units = ranking.top(k)
        for place, unit in enumerate(units):
            emit(Progress("interactions", 2 * len(found), work, "measurement"))
            key = treatment.label, unit.target
            if key not in alone:
                alone[key] = _damage(context, ranking, [unit], treatment)
            others = [*units[:place], *units[place + 1 :]]
            without = _damage(context, ranking, others, treatment) if others else context.intact
            found.append(_interaction(context, group, unit, alone[key], without, joint))
    emit(Progress("interactions", work, work, "measurement"))
    return found


def _damage(
    context: MeasurementContext, ranking: Ranking, units: Sequence[TopWeight], treatment: Treatment
) -> Evaluation:
    return measure(context, critical_weights(context.loaded, ranking, units), treatment).evaluation


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
