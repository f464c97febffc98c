"""What is damaged: the critical sets of a run and the draws of their controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cwa_engine.damage.patch import patched
from cwa_engine.damage.treatments import Comparison, Draw, controls_of, seeds_of, sizes
from cwa_engine.methods.controls import CONTROLS, Population, Selection, critical_set, weights_of
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import unit_size
from cwa_engine.rows import Ranking, TopWeight
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec


def critical_weights(loaded: LoadedModel, ranking: Ranking, weights: Sequence[TopWeight]) -> Selection:
    """Flat indices of these units of a ranking."""
    parameters = loaded.anatomy.parameters
    return weights_of(critical_set(weights, parameters, ranking.structure), parameters, ranking.structure)


def comparisons(loaded: LoadedModel, rankings: Sequence[Ranking], spec: RunSpec) -> Iterator[Comparison]:
    """Every metric and k."""
    for ranking in rankings:
        population = _population(loaded, ranking, spec)
        for k in sizes(ranking.metric, len(ranking.weights), spec):
            units = critical_set(ranking.top(k), population.parameters, ranking.structure)
            critical = weights_of(units, population.parameters, ranking.structure)
            drawn = []
            for name in controls_of(ranking.metric, spec):
                for seed in seeds_of(name, spec):
                    rng = np.random.default_rng([spec.seed if seed is None else seed, k])
                    chosen = CONTROLS[name].draw(units, population, rng)
                    weights = weights_of(chosen, population.parameters, ranking.structure)
                    drawn.append(Draw(name, seed, chosen, weights))
            yield Comparison(ranking.metric, k, ranking.structure, critical, tuple(drawn))


def _population(loaded: LoadedModel, ranking: Ranking, spec: RunSpec) -> Population:
    by_magnitude: tuple[TopWeight, ...] = ()
    if "top_magnitude" in spec.controls:
        ranked = loaded.with_parameters(ranking.parameters)
        statistics = resident(ranked, (), Needs.NOTHING)
        by_magnitude = rank(ranked, statistics, "magnitude", len(ranking.weights), structure=ranking.structure).weights
    return Population(
        parameters={name: loaded.anatomy.parameters[name] for name in ranking.parameters},
        magnitudes=partial(_magnitudes, loaded, ranking.structure),
        lowest=ranking.lowest,
        largest_magnitudes=by_magnitude,
        structure=ranking.structure,
    )


def _magnitudes(loaded: LoadedModel, structure: str, name: str) -> NDArray[np.float32]:
    """|w| of each weight of a parameter, the Euclidean norm of each structure. [units]"""
    parameter = loaded.anatomy.parameters[name]
    weight = loaded.model.get_parameter(name).detach().float().cpu() + parameter.offset
    if structure == "weight":
        return np.asarray(weight.abs().flatten().numpy())
    stack = weight.reshape(parameter.experts or 1, *parameter.matrix_shape)  # as stored
    matrix = stack.mT if parameter.transposed else stack  # [experts, out, in]
    squares = matrix.square().sum(2 if structure == "row" else 1).flatten()
    if structure == "head":
        squares = squares.view(-1, unit_size(parameter, structure) // parameter.out_features).sum(1)
    return np.asarray(squares.sqrt().numpy())


def zeroed_together(loaded: LoadedModel, units: Sequence[TopWeight]) -> AbstractContextManager[object]:
    """These weights are zero meanwhile."""
    chosen = critical_set(units, loaded.anatomy.parameters)
    return patched(loaded.model, chosen, PERTURBATIONS["zero"], offsets=loaded.anatomy.offsets)
