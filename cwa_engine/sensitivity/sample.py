"""A sample of units from all levels of every metric's scores, drawn while the statistics are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cwa_engine.methods.controls import CONTROLS, Population, critical_set
from cwa_engine.methods.metrics import METRICS
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import unit_of
from cwa_engine.rows import SAMPLED_TOP, Ranking, TopWeight
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.ranking import describe_unit, rank, scores_at
from cwa_engine.spec import RunSpec

STRATA = (100, 1_000, 10_000)  # ranks up to which the sample goes on; a last stratum is of all weights


@dataclass(frozen=True)
class Sample:
    """Units from every level of every metric's scores, and what each metric says of them."""

    structure: str
    units: tuple[TopWeight, ...]
    strata: tuple[str, ...]
    scores: dict[str, tuple[float | None, ...]]  # metric -> score of each unit


def draw_sample(loaded: LoadedModel, statistics: Statistics, spec: RunSpec) -> Sample:
    """For each metric its top 20, and as many more as `spec.fidelity` asks for, in equal parts from lower strata."""
    chosen: dict[str, tuple[TopWeight, str]] = {}
    rng = np.random.default_rng(spec.seed)
    for name in spec.scored_metrics:
        ranking = rank(loaded, statistics, name, STRATA[-1], structure=spec.structure)
        share = max(0, (spec.fidelity or 0) - SAMPLED_TOP) // (len(STRATA) + 1)
        levels = [("top 20 of " + name, list(ranking.weights[:SAMPLED_TOP]))]
        for above, below in zip((SAMPLED_TOP, *STRATA), STRATA, strict=False):
            level = ranking.weights[above:below]
            places = rng.choice(len(level), min(share, len(level)), replace=False)
            levels.append((f"ranks {above + 1} to {below} of {name}", [level[place] for place in sorted(places)]))
        levels.append((f"all of {name}", _anywhere(loaded, ranking, share, rng)))
        for stratum, units in levels:
            for unit in units:
                chosen.setdefault(unit.target, (unit, stratum))
    sampled = tuple(unit for unit, _ in chosen.values())
    scores = {name: _scores(loaded, statistics, name, spec.structure, sampled) for name in spec.scored_metrics}
    return Sample(spec.structure, sampled, tuple(stratum for _, stratum in chosen.values()), scores)


def _anywhere(loaded: LoadedModel, ranking: Ranking, wanted: int, rng: np.random.Generator) -> list[TopWeight]:
    """Units drawn from all that were ranked, except the top."""
    parameters = {name: loaded.anatomy.parameters[name] for name in ranking.parameters}
    population = Population(parameters, lambda name: np.empty(0, dtype=np.float32), structure=ranking.structure)
    if not wanted or len(ranking.weights) < SAMPLED_TOP + wanted:
        return []
    top = critical_set(ranking.weights[:wanted], parameters, ranking.structure)
    drawn = CONTROLS["random"].draw(top, population, rng)
    return [
        describe_unit(loaded, parameters[name], ranking.structure, unit, 0, None)
        for name, units in drawn.items()
        for unit in units.tolist()
    ]


def _scores(
    loaded: LoadedModel, statistics: Statistics, metric: str, structure: str, units: Sequence[TopWeight]
) -> tuple[float | None, ...]:
    """The metric's score of each unit, None where it does not rank that parameter."""
    parameters = loaded.anatomy.parameters
    selection = critical_set(units, parameters, structure)
    found = scores_at(loaded, statistics, METRICS[metric], structure, selection)
    by_unit = {
        (name, unit): float(score)
        for name, scores in found.items()
        for unit, score in zip(selection[name].tolist(), scores, strict=True)
    }
    return tuple(
        by_unit.get((unit.parameter, unit_of(parameters[unit.parameter], structure, unit.flat_index))) for unit in units
    )
