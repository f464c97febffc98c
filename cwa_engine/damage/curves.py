"""Damage: perturb critical sets and their controls, and measure each on texts on which the intact model was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.events import DamageMeasured, Emit, Note, Progress
from cwa_engine.base.table import Alike, RowsAlike
from cwa_engine.damage.cases import comparisons, critical_weights
from cwa_engine.damage.competition import compete
from cwa_engine.damage.elimination import most_measured
from cwa_engine.damage.measured import Damaged, Measured, MeasuredComparison, Places, figures
from cwa_engine.damage.measurement import MeasurementContext, TextPart, measure
from cwa_engine.damage.patch import patched
from cwa_engine.damage.treatments import Comparison, Draw, SideCase, Treatment, controls_of
from cwa_engine.evaluation.divergence import Divergence, divergence
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.methods.controls import Selection, count
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import first_weights, target_form, target_numbers
from cwa_engine.rows import ControlDraw, DamagePoint, Ranking, SequenceNll, TopWeight
from cwa_engine.spec import RunSpec

DIVERGENCE_PASSES = 2  # over the texts, by the intact and by the damaged model

SideCases = Callable[[LoadedModel, Comparison, RunSpec], Sequence[SideCase]]


def measure_damage(
    context: MeasurementContext,
    rankings: Sequence[Ranking],
    treatments: Sequence[Treatment],
    side_cases: Sequence[SideCases],
    emit: Emit,
) -> list[MeasuredComparison]:
    """Every critical set and control of the run by every treatment, in order; each is told as a `DamageMeasured` event.

    After the treatments of a critical set come the side cases that it has.
    """
    todo = []
    for comparison in comparisons(context.loaded, rankings, context.spec):
        beside = [list(cases(context.loaded, comparison, context.spec)) for cases in side_cases]
        todo.append((comparison, [cases for cases in beside if cases]))
    return _Measuring(context, todo, treatments, emit).everything()


def damage_units(
    context: MeasurementContext, ranking: Ranking, units: Sequence[TopWeight], treatment: Treatment
) -> Evaluation:
    """All evaluation texts with these units of a ranking damaged, and no others."""
    return measure(context, critical_weights(context.loaded, ranking, units), treatment).evaluation


class _Measuring:
    """Measures comparisons one after the other and tells how far it is."""

    def __init__(
        self,
        context: MeasurementContext,
        todo: Sequence[tuple[Comparison, list[list[SideCase]]]],
        treatments: Sequence[Treatment],
        emit: Emit,
    ) -> None:
        self._context, self._todo, self._treatments, self._emit = context, todo, treatments, emit
        self._total = sum(self._sequences_of(comparison, beside) for comparison, beside in todo)
        self._done = 0

    def everything(self) -> list[MeasuredComparison]:
        self._say_cost()
        found = []
        for comparison, beside in self._todo:
            found += [self._compared(comparison, treatment) for treatment in self._treatments]
            found += [self._beside(comparison, cases) for cases in beside]
        return found

    def _say_cost(self) -> None:
        context = self._context
        draws = sum(len(comparison.draws) for comparison, _ in self._todo)
        if draws:
            texts, sample = len(context.sequences), len(context.sample_places)
            self._emit(
                Note(
                    f"damage takes at most {self._total / texts:.1f} passes over the evaluation texts ({texts}), for "
                    f"{draws} draws of controls on up to {sample} of them and the leading draw of each control on up to all; "
                    "draws that are far behind take less, and so do --fast-perturbation and fewer --control-seeds"
                )
            )

    def _sequences_of(self, comparison: Comparison, beside: Sequence[Sequence[SideCase]]) -> int:
        """How many sequences are run through the model for a comparison, at most."""
        spec, everything, sample = self._context.spec, len(self._context.sequences), len(self._context.sample_places)
        controls = controls_of(comparison.metric, spec)
        compared = sum(most_measured(len(comparison.of(control)), everything) for control in controls)
        critical = everything * (1 + DIVERGENCE_PASSES * spec.kl)
        total = sum(critical + compared * treatment.has_controls for treatment in self._treatments)
        return total + sample * sum(len(cases) for cases in beside)

    def _compared(self, comparison: Comparison, treatment: Treatment) -> MeasuredComparison:
        critical = self._damage(comparison, treatment, "critical", None, comparison.weights)
        draws = {}
        for control in controls_of(comparison.metric, self._context.spec) if treatment.has_controls else ():
            draws[control] = self._drawn(comparison, treatment, critical, comparison.of(control))
        return MeasuredComparison(comparison, treatment, critical, draws)

    def _drawn(
        self, comparison: Comparison, treatment: Treatment, critical: Damaged, draws: Sequence[Draw]
    ) -> list[Damaged]:
        """The draws of a control, each on as many texts as the elimination asks for."""
        context, found, end = self._context, dict[int, Damaged](), self._done
        end += most_measured(len(draws), len(context.sequences))

        def measured(place: int, texts: int) -> Measured:
            draw, before = draws[place], found[place].measured if place in found else None
            if parts := context.parts_between(len(before.places) if before else 0, texts):
                found[place] = self._damage(comparison, treatment, draw.control, draw.seed, draw.weights, parts, before)
            return found[place].measured

        compete(context.reference, draws[0].control, critical.measured, len(draws), measured)
        self._done = end  # what needed no measuring is done
        self._report(0)
        return [found[place] for place in range(len(draws))]

    def _beside(self, comparison: Comparison, cases: Sequence[SideCase]) -> MeasuredComparison:
        """Changes that go with a critical set, on the sample."""
        sample = self._context.sample
        outcomes = [self._damage(comparison, c.treatment, c.selection, c.seed, c.weights, sample) for c in cases]
        return MeasuredComparison(comparison, cases[0].treatment, None, {}, tuple(outcomes))

    def _damage(
        self,
        comparison: Comparison,
        treatment: Treatment,
        selection: str,
        seed: int | None,
        weights: Selection,
        parts: Sequence[TextPart] | None = None,
        before: Measured | None = None,
    ) -> Damaged:
        """Damage, measure and tell; `before` is what was measured of the same change on other texts."""
        context = self._context
        self._report(0)
        measured = measure(context, weights, treatment, parts, self._report)
        self._done += len(measured.places)
        if before:
            measured = before.with_others(measured)
        unchanged = sum(receipt.unchanged for receipt in measured.receipts)
        if unchanged == count(weights) and not before:
            self._emit(Note(f"{treatment.label} changed none of the {unchanged} {selection} weights", "warning"))
        apart = self._divergence(weights, treatment) if context.spec.kl and selection == "critical" else None
        point = DamagePoint(
            metric=comparison.metric,
            k=comparison.k,
            perturbation=treatment.label,
            selection=selection,
            seed=seed,
            weights=count(weights),
            **figures(context.reference, measured),
            kl=apart.kl if apart else None,
            top1_agreement=apart.top1_agreement if apart else None,
            collapsed_at=measured.collapsed_at,
        )
        self._emit(DamageMeasured(point))
        return Damaged(measured, point)

    def _divergence(self, weights: Selection, treatment: Treatment) -> Divergence:
        """By `DIVERGENCE_PASSES` over all texts: each is predicted by the intact model and by the damaged one."""
        context = self._context

        def damaged() -> AbstractContextManager[object]:
            model, offsets = context.loaded.model, context.loaded.anatomy.offsets
            return patched(model, weights, treatment.perturbation, treatment.options, offsets)

        def report(done: int) -> None:
            self._report(DIVERGENCE_PASSES * done)

        found = context.batch_size.run(
            lambda size: divergence(context.loaded, context.sequences, damaged, size, report)
        )
        self._done += DIVERGENCE_PASSES * len(context.sequences)
        return found

    def _report(self, done: int) -> None:
        self._emit(Progress("perturb", self._done + done, self._total, "sequence"))


def sequence_rows(context: MeasurementContext, found: Iterable[MeasuredComparison]) -> list[SequenceNll]:
    """NLL of every sequence that was measured: of the intact model, then of each case."""
    everything = Measured(context.all_places, context.intact)
    rows = _rows(everything.places, everything.evaluation, "", None, "", "intact", None)
    for entry in (damaged for comparison in found for damaged in comparison.damaged):
        point, measured = entry.point, entry.measured
        case = point.metric, point.k, point.perturbation, point.selection, point.seed
        rows += _rows(measured.places, measured.evaluation, *case)
    return rows


def _rows(
    places: Places, evaluation: Evaluation, metric: str, k: int | None, perturbation: str, selection: str,
    seed: int | None,
) -> list[SequenceNll]:  # fmt: skip
    sums = zip(places.tolist(), evaluation.tokens.tolist(), evaluation.nll_sums.tolist(), strict=True)
    return [
        SequenceNll(metric, k, perturbation, selection, seed, place + 1, int(tokens), nll_sum)
        for place, tokens, nll_sum in sums
    ]


def control_rows(parameters: Mapping[str, Parameter], measured: Iterable[Comparison]) -> RowsAlike[ControlDraw]:
    """The weights of every draw, once for all treatments, by names that `--weights` takes."""
    by_set = {(comparison.metric, comparison.k): comparison for comparison in measured}
    return RowsAlike(
        _drawn_units(comparison, draw, parameters[name], units)
        for comparison in by_set.values()
        for draw in comparison.draws
        for name, units in draw.units.items()
    )


def _drawn_units(
    comparison: Comparison, draw: Draw, parameter: Parameter, units: NDArray[np.int64]
) -> Alike[ControlDraw]:
    """Rows of the units that were drawn of one parameter."""
    named = target_form(parameter, comparison.structure)
    form = ControlDraw(comparison.metric, comparison.k, draw.control, draw.seed, named)
    first = first_weights(parameter, comparison.structure, units)
    return Alike(form, "target", target_numbers(parameter, comparison.structure, first).astype(np.int32))
