"""The weight that a card is of, and what every part of its examination needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.events import DamageMeasured, Progress
from cwa_engine.damage.measured import Measured, figures
from cwa_engine.damage.measurement import MeasurementContext, TextPart, measure
from cwa_engine.damage.treatments import Treatment
from cwa_engine.methods.controls import Selection, count
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import find_weights, target_name
from cwa_engine.rows import GIVEN, DamagePoint
from cwa_engine.run import RunContext
from cwa_engine.targets import parse_target


class Unknown(Exception):
    """Something that cannot be found out about a weight; the message is the reason."""


@dataclass(frozen=True)
class ExaminedWeight:
    """One weight of a model."""

    parameter: Parameter
    flat_index: int

    @property
    def target(self) -> str:
        return target_name(self.parameter, "weight", self.flat_index)

    @property
    def alone(self) -> Selection:
        return {self.parameter.name: np.array([self.flat_index], dtype=np.int64)}


def examined_weight(parameters: Mapping[str, Parameter], targets: Sequence[str]) -> ExaminedWeight:
    """The one weight that is named. Raises InvalidInput for none, several, a whole row or column, and an unknown name."""
    if len(targets) != 1:
        raise InvalidInput(
            f"a card is of one weight, and {len(targets)} are named" if targets else "no weight is named",
            hint="name one, like model.layers.1.mlp.down_proj.weight[507,1022]",
        )
    target = parse_target(targets[0])
    indices = find_weights(target, parameters)
    parameter = parameters[target.parameter]
    if len(indices) != 1:
        first = target_name(parameter, "weight", int(indices[0]))
        raise InvalidInput(
            f"'{target.text}' names {len(indices):,} weights, and a card is of one",
            hint=f"name one of them, like {first}; `cwtool run --weights '{target.text}'` damages all of them together",
        )
    return ExaminedWeight(parameter, int(indices[0]))


@dataclass(frozen=True)
class Examination:
    """A weight of a model whose intact loss is measured, ready for changes of weights."""

    run: RunContext
    weight: ExaminedWeight
    context: MeasurementContext

    @property
    def loaded(self) -> LoadedModel:
        return self.run.loaded

    @property
    def sample(self) -> Sequence[TextPart]:
        """The few evaluation texts that all but the weight's own damage is measured on, the same as draws of controls."""
        return self.context.sample

    def measuring(self, stage: str, measurements: int, parts: Sequence[TextPart]) -> Measuring:
        """For so many changes of weights, on these parts of the evaluation texts."""
        return Measuring(self.run, self.context, stage, measurements, parts)


class Measuring:
    """Measures one change of weights after the other, and tells how far it is."""

    def __init__(
        self, run: RunContext, context: MeasurementContext, stage: str, measurements: int, parts: Sequence[TextPart]
    ) -> None:
        self._run, self._context, self._stage, self._parts = run, context, stage, parts
        self._texts = sum(len(part.places) for part in parts)
        self._done, self._total = 0, measurements * self._texts
        self._report(0)

    def measure(self, weights: Selection, treatment: Treatment) -> Measured:
        """The weights are as before after it."""
        found = measure(self._context, weights, treatment, self._parts, self._report)
        self._done += self._texts
        return found

    def _report(self, done: int) -> None:
        self._run.emit(Progress(self._stage, self._done + done, self._total, "sequence"))


def damage_point(examination: Examination, measured: Measured, weights: Selection, label: str) -> DamagePoint:
    """What is published of a change of given weights, as a run has it; told as an event."""
    point = DamagePoint(
        metric=GIVEN,
        k=count(weights),
        perturbation=label,
        selection="critical",
        seed=None,
        weights=count(weights),
        **figures(examination.context.reference, measured),
        collapsed_at=measured.collapsed_at,
    )
    examination.run.emit(DamageMeasured(point))
    return point
