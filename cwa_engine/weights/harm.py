"""What changing one weight does to the loss: zeroed alone, zeroed with its neighbours, and times some factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cwa_engine.base.statistics import paired_delta
from cwa_engine.damage.measured import Measured
from cwa_engine.damage.treatments import ZERO, Treatment
from cwa_engine.methods.controls import Selection
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import find_weights, target_name
from cwa_engine.rows import DamagePoint, WeightFacts
from cwa_engine.targets import parse_target
from cwa_engine.weight_rows import NeighbourDamage
from cwa_engine.weights.examined import Examination, damage_point

NEIGHBOURS = 2  # the largest others of the row, the column and the tensor that are zeroed together with the weight


def zeroed_alone(examination: Examination) -> tuple[Measured, DamagePoint]:
    """The weight zeroed, on all evaluation texts: what `cwtool run --weights` measures."""
    alone = examination.weight.alone
    measured = examination.measuring("alone", 1, examination.context.parts).measure(alone, ZERO)
    return measured, damage_point(examination, measured, alone, ZERO.label)


def dose_response(examination: Examination, factors: Sequence[float]) -> tuple[DamagePoint, ...]:
    """The weight times each factor, the smallest first, on the sample of the evaluation texts."""
    alone, measuring = examination.weight.alone, examination.measuring("doses", len(set(factors)), examination.sample)
    found = []
    for factor in sorted(set(factors)):
        options = dataclasses.replace(examination.run.spec.perturbation_options, scale_factor=factor)
        dose = Treatment(f"scale {factor:g}", PERTURBATIONS["scale"], options, has_controls=False)
        found.append(damage_point(examination, measuring.measure(alone, dose), alone, dose.label))
    return tuple(found)


def with_neighbours(examination: Examination, facts: WeightFacts, alone: Measured) -> tuple[NeighbourDamage, ...]:
    """The weight zeroed together with the largest others around it, beside the sum of what each does alone.

    All on the sample of the evaluation texts, `alone` being the weight's own damage there and elsewhere.
    `excess` is joint less that sum: below zero the weights stand in for one another, above it they matter together.
    """
    groups = {name: targets for name, targets in _groups(examination, facts).items() if targets}
    others = list(dict.fromkeys(target for targets in groups.values() for target in targets))
    measuring = examination.measuring("neighbours", len(others) + len(groups), examination.sample)
    by_target = {facts.target: alone}
    for target in others:
        by_target[target] = measuring.measure(_selection(examination, [target]), ZERO)
    found = []
    for group, targets in groups.items():
        together = (facts.target, *targets)
        weights = _selection(examination, together)
        joint = measuring.measure(weights, ZERO)
        point = damage_point(examination, joint, weights, ZERO.label)
        found.append(_neighbour_damage(examination, group, together, joint, point, by_target))
    return tuple(found)


def _neighbour_damage(
    examination: Examination,
    group: str,
    targets: tuple[str, ...],
    joint: Measured,
    point: DamagePoint,
    by_target: Mapping[str, Measured],
) -> NeighbourDamage:
    intact = examination.context.reference.on(joint.places)
    changes = [by_target[target].on(joint.places).nll_sums - intact.nll_sums for target in targets]  # [sequences] each
    summed = intact.nll_sums + np.sum(changes, axis=0)
    excess, low, high = paired_delta(joint.evaluation.nll_sums, summed, intact.tokens)
    return NeighbourDamage(
        group=group,
        targets=targets,
        joint=point,
        sum_alone=float(np.sum(changes) / intact.tokens.sum()),
        alone=tuple(float(change.sum() / intact.tokens.sum()) for change in changes),
        excess=excess,
        excess_low=low,
        excess_high=high,
    )


def _groups(examination: Examination, facts: WeightFacts) -> dict[str, list[str]]:
    """The largest others of the weight's row, column or vector, and of its whole tensor."""
    found = {line.kind: [placed.target for placed in line.largest] for line in facts.lines}
    parameter = examination.weight.parameter
    if not parameter.is_vector or parameter.experts:
        found["tensor"] = _largest_of(examination, parameter)
    return {kind: [t for t in targets if t != facts.target][:NEIGHBOURS] for kind, targets in found.items()}


def _largest_of(examination: Examination, parameter: Parameter) -> list[str]:
    """Targets of the largest |values| of a tensor, one more than are wanted."""
    stored = examination.loaded.model.get_parameter(parameter.name).detach().reshape(-1)
    sizes = torch.where(stored.isfinite(), stored.abs(), 0)
    places = sizes.topk(min(NEIGHBOURS + 1, len(sizes))).indices
    return [target_name(parameter, "weight", place) for place in places.tolist()]


def _selection(examination: Examination, targets: Sequence[str]) -> Selection:
    parameters = examination.loaded.anatomy.parameters
    found: dict[str, list[int]] = {}
    for target in map(parse_target, targets):
        found.setdefault(target.parameter, []).extend(find_weights(target, parameters).tolist())
    return {name: np.array(sorted(indices), dtype=np.int64) for name, indices in found.items()}
