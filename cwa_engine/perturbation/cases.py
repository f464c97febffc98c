"""What is damaged and how: the critical sets of a run, their controls, and the ways in which weights are changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from cwa_engine.models.loading import LoadedModel
from cwa_engine.perturbation.controls import CONTROLS, Population, Selection, critical_set, weights_of
from cwa_engine.perturbation.kinds import PERTURBATIONS, STORED_BITS, Options, Perturbation, placed
from cwa_engine.result import GIVEN, MATRICES, Ranking, TopWeight
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.metrics import Needs
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec
from cwa_engine.structures import unit_size


@dataclass(frozen=True)
class Treatment:
    """One way to damage weights, under the name it has in tables."""

    label: str
    perturbation: Perturbation
    options: Options
    has_controls: bool = True  # a dose or a bit of a sweep is compared with the others, not with controls


ZERO = Treatment("zero", PERTURBATIONS["zero"], Options())


@dataclass(frozen=True)
class Draw:
    """One draw of a control. `units` are those of the ranked structure, `weights` their flat indices."""

    control: str
    seed: int | None  # None for a control that is not drawn
    units: Selection
    weights: Selection


@dataclass(frozen=True)
class Comparison:
    """A critical set and the draws of its controls. `weights` are flat indices."""

    metric: str
    k: int
    structure: str  # what k counts
    weights: Selection
    draws: tuple[Draw, ...]

    def of(self, control: str) -> list[Draw]:
        return [draw for draw in self.draws if draw.control == control]


def treatments(spec: RunSpec, dtype: str) -> list[Treatment]:
    """The perturbations of a run; `--bit all` becomes one for each stored bit, `--dose` one for each factor."""
    options = spec.perturbation_options
    found = []
    for name in spec.perturbations:
        if name == "bit_flip" and spec.bit == "all":
            for bit in range(STORED_BITS[dtype]):
                at_bit = dataclasses.replace(options, bit=bit)
                found.append(Treatment(f"bit_flip {bit}", PERTURBATIONS[name], at_bit, has_controls=False))
        else:
            found.append(Treatment(name, PERTURBATIONS[name], options))
    for factor in spec.dose:
        scaled = dataclasses.replace(options, scale_factor=factor)
        found.append(Treatment(f"scale {factor:g}", PERTURBATIONS["scale"], scaled, has_controls=False))
    return found


def sizes(ranking: Ranking, spec: RunSpec) -> tuple[int, ...]:
    """The k of a ranking: those asked for, or all weights that were given."""
    return (len(ranking.weights),) if ranking.metric == GIVEN else spec.topk


def critical_weights(loaded: LoadedModel, ranking: Ranking, weights: Sequence[TopWeight]) -> Selection:
    """Flat indices of these units of a ranking."""
    parameters = loaded.anatomy.parameters
    return weights_of(critical_set(weights, parameters, ranking.structure), parameters, ranking.structure)


def controls_of(label: str, spec: RunSpec) -> tuple[str, ...]:
    """The controls of a ranking. That of matrices alone is spared `random` where the stricter `random_matched` is there."""
    if label.endswith(MATRICES) and "random_matched" in spec.controls:
        return tuple(name for name in spec.controls if name != "random")
    return spec.controls


def comparisons(loaded: LoadedModel, rankings: Sequence[Ranking], spec: RunSpec) -> Iterator[Comparison]:
    """Every metric and k."""
    for ranking in rankings:
        population = _population(loaded, ranking, spec)
        for k in sizes(ranking, spec):
            units = critical_set(ranking.top(k), population.parameters, ranking.structure)
            critical = weights_of(units, population.parameters, ranking.structure)
            drawn = []
            for name in controls_of(ranking.metric, spec):
                for seed in _seeds(name, spec):
                    rng = np.random.default_rng([spec.seed if seed is None else seed, k])
                    chosen = CONTROLS[name].draw(units, population, rng)
                    weights = weights_of(chosen, population.parameters, ranking.structure)
                    drawn.append(Draw(name, seed, chosen, weights))
            yield Comparison(ranking.metric, k, ranking.structure, critical, tuple(drawn))


def elsewhere(
    loaded: LoadedModel, critical: Selection, k: int, spec: RunSpec
) -> Iterator[tuple[int, Treatment, Selection]]:
    """(seed, treatment, places): the values of the critical weights written over others of the same parameter.

    The critical weights stay as they are.
    """
    values = {
        name: loaded.model.get_parameter(name).detach().reshape(-1)[torch.from_numpy(indices)].clone()
        for name, indices in critical.items()
    }
    treatment = Treatment("place", placed(values), spec.perturbation_options, has_controls=False)
    single = Population(loaded.anatomy.parameters, magnitudes=lambda name: np.empty(0, dtype=np.float32))
    for seed in range(spec.seed, spec.seed + spec.control_seeds):
        yield seed, treatment, CONTROLS["random_matched"].draw(critical, single, np.random.default_rng([seed, k]))


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


def _seeds(control: str, spec: RunSpec) -> Sequence[int | None]:
    """A seed for each draw; a control that is not random is measured once, without one."""
    if not CONTROLS[control].is_random:
        return [None]
    draws = max(spec.control_seeds, CONTROLS[control].least_draws)
    return range(spec.seed, spec.seed + draws)
