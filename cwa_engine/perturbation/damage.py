"""Damage curves: perturb a critical set and its controls, measure each on the same texts as the intact model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.errors import WeightsNotRestored
from cwa_engine.evaluation.perplexity import Evaluation, evaluate
from cwa_engine.events import DamageMeasured, Emit, Note, Progress
from cwa_engine.models.loading import LoadedModel
from cwa_engine.perturbation.controls import CONTROLS, Population, Selection, count, critical_set
from cwa_engine.perturbation.kinds import PERTURBATIONS
from cwa_engine.perturbation.patch import patched
from cwa_engine.result import DamagePoint, Ranking, Separation, TopWeight, exp
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.metrics import Needs
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec
from cwa_engine.statistics import Array, bootstrap_weights, paired_delta, separation_ratio

DRIFT_LIMIT = 1e-6  # nats; an intact model measured twice differs by nothing on a CPU, by rounding on some GPUs


@dataclass(frozen=True)
class _Case:
    """One set of weights to damage in one way."""

    metric: str
    k: int
    perturbation: str
    selection: str
    seed: int | None
    weights: Selection

    @property
    def group(self) -> tuple[str, int, str]:
        """What a critical set and its controls have in common."""
        return self.metric, self.k, self.perturbation


def measure_damage(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    intact: Evaluation,
    rankings: Sequence[Ranking],
    spec: RunSpec,
    emit: Emit,
) -> tuple[tuple[DamagePoint, ...], tuple[Separation, ...]]:
    """Every metric, k and perturbation of `spec`: the critical set, then each draw of each control.

    `intact` is the baseline on the same `sequences`. The weights are as before when this returns or raises.
    """
    cases = list(_cases(loaded, rankings, spec))
    resamples = bootstrap_weights(len(sequences), spec.seed)
    measured: list[tuple[_Case, Evaluation]] = []
    points = []
    work = len(cases) * len(sequences)
    for number, case in enumerate(cases):

        def report(done: int, before: int = number * len(sequences)) -> None:
            emit(Progress("perturb", before + done, work, "sequence"))

        report(0)
        perturbation = PERTURBATIONS[case.perturbation]
        with patched(loaded.model, case.weights, perturbation, spec.perturbation_options) as receipts:
            damaged = evaluate(loaded, sequences, spec.batch_size, report)
            collapsed_at = None if math.isfinite(damaged.nll) else first_non_finite_layer(loaded, sequences)
        unchanged = sum(receipt.unchanged for receipt in receipts)
        if unchanged == count(case.weights):
            emit(Note(f"{perturbation.name} changed none of the {unchanged} {case.selection} weights", "warning"))
        measured.append((case, damaged))
        points.append(_point(case, damaged, intact, resamples, collapsed_at))
        emit(DamageMeasured(points[-1]))
    return tuple(points), tuple(_separations(measured, intact, resamples))


def check_restored(loaded: LoadedModel, sequences: Sequence[TokenSequence], intact: Evaluation, spec: RunSpec) -> float:
    """Measure the intact model again; the difference in nats per token. Raises WeightsNotRestored beyond rounding."""
    drift = evaluate(loaded, sequences, spec.batch_size).nll - intact.nll
    if not abs(drift) <= DRIFT_LIMIT:
        raise WeightsNotRestored(
            f"after all edits were undone the baseline differs by {drift:.3g} nats per token",
            hint="the model is loaded afresh by the next run; please report this with the run's manifest.json",
        )
    return drift


def first_non_finite_layer(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> str:
    """Name of the first module, in the order of execution, that puts out NaN or infinity on any of `sequences`."""
    for sequence in sequences:
        with _first_non_finite(loaded) as found, torch.inference_mode():
            ids = torch.tensor([sequence.ids], device=loaded.device)
            loaded.model(input_ids=ids, use_cache=False)
        if found:
            return found[0]
    return "loss"


@contextmanager
def _first_non_finite(loaded: LoadedModel) -> Iterator[list[str]]:
    found: list[str] = []

    def hook_for(name: str) -> object:
        def hook(module: object, inputs: object, output: object) -> None:  # None, or the output would be replaced
            tensor = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
                found.append(name)

        return hook

    leaves = [(name, m) for name, m in loaded.model.named_modules() if not any(m.children())]
    handles = [module.register_forward_hook(hook_for(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _cases(loaded: LoadedModel, rankings: Sequence[Ranking], spec: RunSpec) -> Iterator[_Case]:
    by_magnitude: tuple[TopWeight, ...] = ()
    if "top_magnitude" in spec.controls:
        by_magnitude = rank(loaded, resident(loaded, (), Needs.NOTHING), "magnitude", spec.largest_k).weights
    for ranking in rankings:
        population = Population(loaded.anatomy.parameters, partial(_magnitudes, loaded), ranking.lowest, by_magnitude)
        for k in spec.topk:
            critical = critical_set(ranking.weights[:k])
            drawn = [
                (name, seed, _draw(name, critical, population, spec.seed if seed is None else seed, k))
                for name in spec.controls
                for seed in _seeds(name, spec)
            ]
            for perturbation in spec.perturbations:
                yield _Case(ranking.metric, k, perturbation, "critical", None, critical)
                for name, seed, weights in drawn:
                    yield _Case(ranking.metric, k, perturbation, name, seed, weights)


def _seeds(control: str, spec: RunSpec) -> Sequence[int | None]:
    """A seed for each draw; a control that is not random is measured once, without one."""
    return range(spec.seed, spec.seed + spec.control_seeds) if CONTROLS[control].is_random else [None]


def _draw(control: str, critical: Selection, population: Population, seed: int, k: int) -> Selection:
    return CONTROLS[control].draw(critical, population, np.random.default_rng([seed, k]))


def _magnitudes(loaded: LoadedModel, name: str) -> NDArray[np.float32]:
    magnitudes: NDArray[np.float32] = loaded.model.get_parameter(name).detach().float().abs().flatten().cpu().numpy()
    return magnitudes


def _point(
    case: _Case, damaged: Evaluation, intact: Evaluation, resamples: Array, collapsed_at: str | None
) -> DamagePoint:
    delta, low, high = paired_delta(damaged.nll_sums, intact.nll_sums, intact.tokens, resamples)
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
        collapsed_at=collapsed_at,
    )


def _separations(
    measured: Sequence[tuple[_Case, Evaluation]], intact: Evaluation, resamples: Array
) -> Iterator[Separation]:
    for case, critical in measured:
        if case.selection != "critical":
            continue
        controls = dict.fromkeys(
            c.selection for c, _ in measured if c.group == case.group and c.selection != "critical"
        )
        for name in controls:
            draws = [e.nll_sums for c, e in measured if c.group == case.group and c.selection == name]
            yield _separation(case, name, critical, draws, intact, resamples)


def _separation(
    case: _Case, control: str, critical: Evaluation, draws: list[Array], intact: Evaluation, resamples: Array
) -> Separation:
    mean_draw = np.mean(draws, axis=0)
    control_delta: tuple[float | None, ...] = (None, None, None)
    if np.isfinite(mean_draw).all():
        control_delta = paired_delta(mean_draw, intact.nll_sums, intact.tokens, resamples)
    ratio = separation_ratio(critical.nll_sums, draws, intact.nll_sums, intact.tokens, resamples)
    return Separation(*case.group, control, len(draws), *control_delta, *(ratio or (None, None, None)))
