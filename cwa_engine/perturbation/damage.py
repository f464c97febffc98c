"""Damage: perturb critical sets and their controls, measure each on the same texts as the intact model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.errors import WeightsNotRestored
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.divergence import Divergence, divergence
from cwa_engine.evaluation.perplexity import Evaluation, evaluate
from cwa_engine.evaluation.resume import KeptStates, keep_states
from cwa_engine.events import DamageMeasured, Emit, Note, Progress
from cwa_engine.models.chain import NotAChain
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.memory import BatchSize
from cwa_engine.perturbation.cases import Case, Treatment, cases
from cwa_engine.perturbation.controls import Selection, count
from cwa_engine.perturbation.kinds import Perturbation
from cwa_engine.perturbation.patch import Receipt, patched
from cwa_engine.result import DamagePoint, NumericalFloor, Ranking, SequenceNll, exp
from cwa_engine.spec import RunSpec
from cwa_engine.statistics import Array, bootstrap_weights, paired_delta

DRIFT_LIMIT = 1e-6  # nats; an intact model measured twice differs by nothing on a CPU, by rounding on some GPUs
UNCHANGED = Perturbation("unchanged", lambda old, edit: old)


@dataclass(frozen=True)
class Ground:
    """What every measurement of a run stands on: the model, the texts, and the intact model's loss on them."""

    loaded: LoadedModel
    sequences: Sequence[TokenSequence]
    intact: Evaluation
    spec: RunSpec
    batch_size: BatchSize
    resamples: Array  # [resamples, sequences]
    kept: KeptStates | None  # None where the model has to be computed whole
    floor: float = 0.0  # nats per token that an edit which changes nothing makes

    def evaluate(self, changed: Iterable[str], report: Callable[[int], None] = lambda done: None) -> Evaluation:
        """The model as it is now, these parameters being the only ones that are not intact."""

        def measured(size: int) -> Evaluation:
            if self.kept and len(self.kept.batches[0]) <= size:
                return self.kept.evaluate(changed, report)
            return evaluate(self.loaded, self.sequences, size, report)

        return self.batch_size.run(measured)

    def delta(self, damaged: Evaluation, reference: Evaluation | None = None) -> tuple[float, float, float]:
        """Paired change of NLL against the intact model or another measurement, with its 95 % interval."""
        base = reference or self.intact
        return paired_delta(damaged.nll_sums, base.nll_sums, base.tokens, self.resamples)


@dataclass(frozen=True)
class Measured:
    """A case and what it did."""

    case: Case
    evaluation: Evaluation
    point: DamagePoint

    @property
    def is_critical(self) -> bool:
        return self.case.selection == "critical"


def lay_ground(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    intact: Evaluation,
    rankings: Sequence[Ranking],
    spec: RunSpec,
    batch_size: BatchSize,
) -> Ground:
    """Measure an edit that writes the values which are there already, keep what damage can be measured from on the way, and
    draw the bootstrap's resamples."""
    first = rankings[0].weights[:1]
    null = {weight.parameter: np.array([weight.flat_index]) for weight in first}
    with patched(loaded.model, null, UNCHANGED):
        try:
            kept = batch_size.run(lambda size: keep_states(loaded, sequences, size))
        except NotAChain:
            kept = None
        ground = Ground(loaded, sequences, intact, spec, batch_size, bootstrap_weights(len(sequences), spec.seed), kept)
        again = ground.evaluate(())
    return dataclasses.replace(ground, floor=again.nll - intact.nll)


def measure(
    ground: Ground, weights: Selection, treatment: Treatment, report: Callable[[int], None] = lambda done: None
) -> tuple[Evaluation, str | None, list[Receipt]]:
    """Damage these weights and measure: the evaluation, the first layer of a collapse, the receipts.

    `report(done)` hears how many sequences are measured. The weights are as before when this returns or raises.
    """
    loaded, sequences = ground.loaded, ground.sequences
    with patched(loaded.model, weights, treatment.perturbation, treatment.options, loaded.anatomy.offsets) as receipts:
        damaged = ground.evaluate(weights, report)
        collapsed_at = None if math.isfinite(damaged.nll) else first_non_finite_layer(loaded, sequences)
    return damaged, collapsed_at, receipts


def measure_damage(ground: Ground, rankings: Sequence[Ranking], emit: Emit) -> list[Measured]:
    """Every case of the run, in order; each is told as a `DamageMeasured` event."""
    loaded, spec = ground.loaded, ground.spec
    todo = list(cases(loaded, rankings, spec))
    work = len(todo) * len(ground.sequences)
    measured = []
    for number, case in enumerate(todo):

        def report(done: int, before: int = number * len(ground.sequences)) -> None:
            emit(Progress("perturb", before + done, work, "sequence"))

        report(0)
        damaged, collapsed_at, receipts = measure(ground, case.weights, case.treatment, report)
        unchanged = sum(receipt.unchanged for receipt in receipts)
        if unchanged == count(case.weights):
            emit(Note(f"{case.perturbation} changed none of the {unchanged} {case.selection} weights", "warning"))
        apart = _divergence(ground, case) if spec.kl else None
        measured.append(Measured(case, damaged, _damage_point(ground, case, damaged, collapsed_at, apart)))
        emit(DamageMeasured(measured[-1].point))
    return measured


def _divergence(ground: Ground, case: Case) -> Divergence:
    def damaged() -> AbstractContextManager[object]:
        model, offsets = ground.loaded.model, ground.loaded.anatomy.offsets
        return patched(model, case.weights, case.treatment.perturbation, case.treatment.options, offsets)

    return ground.batch_size.run(lambda size: divergence(ground.loaded, ground.sequences, damaged, size))


def check_restored(ground: Ground) -> NumericalFloor:
    """Measure the intact model again. Raises WeightsNotRestored where it differs beyond rounding."""
    again = ground.batch_size.run(lambda size: evaluate(ground.loaded, ground.sequences, size))
    drift = again.nll - ground.intact.nll
    if not abs(drift) <= DRIFT_LIMIT:
        raise WeightsNotRestored(
            f"after all edits were undone the baseline differs by {drift:.3g} nats per token",
            hint="the model is loaded afresh by the next run; please report this with the run's manifest.json",
        )
    return NumericalFloor(repeat=drift, null_edit=ground.floor)


def _damage_point(
    ground: Ground, case: Case, damaged: Evaluation, collapsed_at: str | None, apart: Divergence | None
) -> DamagePoint:
    """What is published of one case."""
    delta, low, high = ground.delta(damaged)
    return DamagePoint(
        metric=case.metric,
        k=case.k,
        perturbation=case.perturbation,
        selection=case.selection,
        seed=case.seed,
        weights=count(case.weights),
        nll=damaged.nll,
        perplexity=damaged.perplexity,
        delta_nll=delta,
        delta_low=low,
        delta_high=high,
        perplexity_ratio=exp(delta),
        kl=apart.kl if apart else None,
        top1_agreement=apart.top1_agreement if apart else None,
        collapsed_at=collapsed_at,
    )


def sequence_rows(intact: Evaluation, measured: Iterable[Measured]) -> list[SequenceNll]:
    """NLL of every sequence: of the intact model, then of each case."""
    rows = _rows(intact, "", None, "", "intact", None)
    for entry in measured:
        case = entry.case
        rows += _rows(entry.evaluation, case.metric, case.k, case.perturbation, case.selection, case.seed)
    return rows


def _rows(
    evaluation: Evaluation, metric: str, k: int | None, perturbation: str, selection: str, seed: int | None
) -> list[SequenceNll]:
    sums = zip(evaluation.tokens.tolist(), evaluation.nll_sums.tolist(), strict=True)
    return [
        SequenceNll(metric, k, perturbation, selection, seed, number, int(tokens), nll_sum)
        for number, (tokens, nll_sum) in enumerate(sums, start=1)
    ]
