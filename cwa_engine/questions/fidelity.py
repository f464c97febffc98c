"""Metric fidelity: do scores say what zeroing a weight really costs? Measured on a sample from all levels of score."""

from __future__ import annotations

from cwa_engine.base.events import Emit, Progress
from cwa_engine.damage.cases import critical_weights
from cwa_engine.damage.measurement import MeasurementContext, measure
from cwa_engine.damage.treatments import ZERO
from cwa_engine.rows import Prediction, Ranking
from cwa_engine.sensitivity.sample import Sample


def measure_predictions(context: MeasurementContext, sample: Sample, emit: Emit) -> list[Prediction]:
    """Zero each sampled unit alone, on the evaluation texts."""
    ranking = Ranking("sample", sample.units, structure=sample.structure)
    rows = []
    for place, unit in enumerate(sample.units):
        emit(Progress("fidelity", place, len(sample.units), "weight"))
        damaged = measure(context, critical_weights(context.loaded, ranking, [unit]), ZERO).evaluation
        scores = tuple(of_metric[place] for of_metric in sample.scores.values())
        rows.append(Prediction(unit.target, sample.strata[place], *context.delta(damaged), scores))
    emit(Progress("fidelity", len(sample.units), len(sample.units), "weight"))
    return rows
