"""Interactions: what each unit of a critical set does alone, and what the set does without it.

Most published super weights do nothing alone, and much together; a damage of the whole set does not tell which. A unit
matters where it makes a tenth of an equal share of the set's damage, and the whole interval is a loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cwa_engine.evaluation.perplexity import Evaluation
from cwa_engine.events import Emit, Progress
from cwa_engine.perturbation.cases import Treatment, critical_weights, sizes, treatments
from cwa_engine.perturbation.damage import MeasuredComparison
from cwa_engine.perturbation.measurement import MeasurementContext, measure
from cwa_engine.result import Interaction, Ranking, TopWeight


def measure_interactions(
    context: MeasurementContext, rankings: Sequence[Ranking], measured: Sequence[MeasuredComparison], emit: Emit
) -> list[Interaction]:
    """Each unit of every critical set that was compared with controls, damaged alone and left out."""
    plan = [
        (ranking, k, treatment)
        for ranking in rankings
        for k in sizes(ranking, context.spec)
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
    least = max(context.rounding, context.delta(joint)[0] / (10 * group[1]) if math.isfinite(joint.nll) else 0)
    matters_alone, adds = _is_loss(own, least), _is_loss(share, least) and math.isfinite(without.nll)
    role = "alone" if matters_alone else "together" if adds else "inert"
    return Interaction(*group, unit.target, *own, context.delta(without)[0], *share, role)


def _is_loss(delta: tuple[float, float, float], least: float) -> bool:
    """Whether a loss is at least so large, and its whole interval above zero; one that is not finite is."""
    return not (delta[0] < least or delta[1] <= 0)
