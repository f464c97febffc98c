"""What every measurement of damage needs: the texts, the intact model's loss on them, and where damage can begin from.

The evaluation texts are in parts by which measurements grow. The critical set is measured on all of them, the draws of its
controls on as many as `elimination.py` asks for.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cwa_engine.base.errors import WeightsNotRestored
from cwa_engine.base.statistics import paired_delta
from cwa_engine.damage.elimination import looks_of, rounds_of
from cwa_engine.damage.measured import Measured, Places, Reference, text_order
from cwa_engine.damage.patch import patched
from cwa_engine.damage.treatments import Treatment
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.evaluation.resume import CachedStates, cache_states
from cwa_engine.methods.controls import Selection, by_parameter, weights_of
from cwa_engine.methods.perturbations import Options, Perturbation
from cwa_engine.models.chain import NotAChain
from cwa_engine.models.checksum import checksum
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import unit_count
from cwa_engine.rows import NumericalFloor, Ranking
from cwa_engine.spec import RunSpec

DRIFT_LIMIT = 1e-6  # nats; an intact model measured twice differs by nothing where kernels are repeatable
NUDGES = 3  # edits that should do nothing but round, of which the largest change is the numerical floor

Checksums = dict[str, tuple[int, int]]
Report = Callable[[int], None]  # hears how many sequences are measured


def _ignore(done: int) -> None: ...


def _after(report: Report, before: int, done: int) -> None:
    """Tell that so many more are measured, after those of earlier passes."""
    report(before + done)


def _next_value(old: torch.Tensor, edit: object) -> torch.Tensor:
    """Each value moved to the next one that its dtype has, away from zero."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[old.element_size()]
    return (old.view(integers) + 1).view(old.dtype)


NUDGE = Treatment("nudge", Perturbation("nudge", _next_value, "nudging"), Options(), has_controls=False)


@dataclass(frozen=True)
class TextPart:
    """Some of the evaluation texts. `kept` is None where the model has to be computed whole."""

    places: Places  # among the evaluation texts, ascending
    sequences: Sequence[TokenSequence]
    kept: CachedStates | None


@dataclass(frozen=True)
class MeasurementContext:
    """The model, the evaluation texts in their parts, and the intact model's loss on them."""

    loaded: LoadedModel
    sequences: Sequence[TokenSequence]
    intact: Evaluation
    spec: RunSpec
    batch_size: BatchSize
    sample: tuple[TextPart, ...]  # one for each round of an elimination: the texts that it adds
    rest: tuple[TextPart, ...]  # the same for each look; none where the sample is all there is
    rounding: float = 0.0  # nats per token: what an edit that should change nothing changes
    checksums: Checksums | None = None  # of the intact weights; None on a CPU, where the loss says enough

    @property
    def all_places(self) -> Places:
        return np.arange(len(self.sequences))

    @property
    def sample_places(self) -> Places:
        """The texts of all rounds of an elimination. Ascending"""
        return np.sort(np.concatenate([part.places for part in self.sample]))

    @property
    def parts(self) -> tuple[TextPart, ...]:
        return self.sample + self.rest

    def parts_between(self, before: int, texts: int) -> list[TextPart]:
        """The parts that the first so many texts have, and the first `before` do not."""
        ends = np.cumsum([len(part.places) for part in self.parts])
        return [part for part, end in zip(self.parts, ends, strict=True) if before < end <= texts]

    def evaluate(self, changed: Iterable[str], report: Report = _ignore) -> Evaluation:
        """The model as it is now on all texts, these parameters being the only ones that are not intact."""
        return self.measure(changed, self.parts, report).evaluation

    def measure(self, changed: Iterable[str], parts: Sequence[TextPart], report: Report = _ignore) -> Measured:
        """The same on some parts of the texts."""
        changed = tuple(changed)
        found: Measured | None = None
        for part in parts:
            one = self._measure_part(part, changed, report, len(found.places) if found else 0)
            found = found.with_others(one) if found else one
        assert found
        return found

    def _measure_part(self, part: TextPart, changed: Sequence[str], report: Report, before: int) -> Measured:
        """`before` is how many sequences were measured already."""

        def evaluated(size: int) -> Evaluation:
            if part.kept and len(part.kept.batches[0]) <= size:
                return part.kept.evaluate(changed, lambda done: report(before + done))
            return evaluate(self.loaded, part.sequences, size, lambda done: report(before + done))

        return Measured(part.places, self.batch_size.run(evaluated))

    def delta(self, damaged: Evaluation, reference: Evaluation | None = None) -> tuple[float, float, float]:
        """Paired change of NLL on all texts against the intact model or another measurement, with its 95 % interval."""
        base = reference or self.intact
        return paired_delta(damaged.nll_sums, base.nll_sums, base.tokens)

    @property
    def reference(self) -> Reference:
        """The intact model's loss, which is what changes are judged by."""
        return Reference(self.intact, self.sample_places, self.rounding)


def prepare_measurement(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    intact: Evaluation,
    spec: RunSpec,
    batch_size: BatchSize,
    report: Report = _ignore,
) -> MeasurementContext:
    """Divide the texts, and run the intact model over them once to keep what damage is measured from."""
    order, rounds = text_order(len(sequences)), rounds_of(len(sequences))
    ends = [*rounds, *looks_of(len(sequences))]
    report(0)
    parts = []
    for begin, end in itertools.pairwise([0, *ends]):
        places = np.array(sorted(order[begin:end]), dtype=np.int64)
        parts.append(_part(loaded, sequences, places, batch_size, partial(_after, report, begin)))
    sample, rest = tuple(parts[: len(rounds)]), tuple(parts[len(rounds) :])
    checksums = None if loaded.device.type == "cpu" else checksum(loaded.model)
    return MeasurementContext(loaded, sequences, intact, spec, batch_size, sample, rest, checksums=checksums)


def _part(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], places: Places, batch_size: BatchSize, report: Report
) -> TextPart:
    chosen = [sequences[place] for place in places]
    share = len(places) / len(sequences)
    try:
        kept = batch_size.run(lambda size: cache_states(loaded, chosen, size, share, report))
    except NotAChain:
        kept = None
        report(len(places))
    return TextPart(places, chosen, kept)


def measure(
    context: MeasurementContext,
    weights: Selection,
    treatment: Treatment,
    parts: Sequence[TextPart] | None = None,
    report: Report = _ignore,
) -> Measured:
    """Damage these weights and measure on these parts of the texts, by default all. The weights are as before after it."""
    model, offsets = context.loaded.model, context.loaded.anatomy.offsets
    with patched(model, weights, treatment.perturbation, treatment.options, offsets) as receipts:
        found = context.measure(weights, parts or context.parts, report)
        collapsed_at = None
        if not math.isfinite(found.evaluation.nll):
            collapsed_at = first_non_finite_layer(context.loaded, [context.sequences[place] for place in found.places])
    return dataclasses.replace(found, collapsed_at=collapsed_at, receipts=tuple(receipts))


def with_rounding(
    context: MeasurementContext, ranking: Ranking, k: int, report: Report = _ignore
) -> MeasurementContext:
    """The context with the numerical floor: the largest change that nudging k random units of what was ranked makes.

    Each is moved to the next value its dtype has. In bfloat16 that rounds every product anew, as any edit does. `report` hears
    of `NUDGES` passes over the sample.
    """
    parameters = {name: context.loaded.anatomy.parameters[name] for name in ranking.parameters}
    sizes = {name: unit_count(parameter, ranking.structure) for name, parameter in parameters.items()}
    changes = []
    report(0)
    for number in range(NUDGES):
        before = number * len(context.sample_places)
        rng = np.random.default_rng([context.spec.seed, number])
        units = by_parameter(np.unique(rng.integers(0, sum(sizes.values()), k)), sizes)
        nudged = weights_of(units, parameters, ranking.structure)
        measured = measure(context, nudged, NUDGE, context.sample, partial(_after, report, before))
        changes.append(abs(context.reference.delta(measured)[0]))
    finite = [change for change in changes if math.isfinite(change)]
    return dataclasses.replace(context, rounding=max(finite, default=0.0))


def check_restored(
    context: MeasurementContext, report: Report = _ignore, say: Callable[[str], None] = lambda text: None
) -> NumericalFloor:
    """Measure the intact model again, on the sample. Raises WeightsNotRestored where it differs beyond rounding.

    Kernels of a GPU may differ by more from one time to the next. There the bits of all weights decide, and `say` hears of
    the difference.
    """
    places = context.sample_places
    sample = [context.sequences[place] for place in places]

    def still(done: int) -> None:
        report(len(places))

    report(0)
    again = context.batch_size.run(lambda size: evaluate(context.loaded, sample, size, report))
    drift = unexplained = again.nll - context.reference.on(places).nll
    if not abs(drift) <= DRIFT_LIMIT and context.batch_size.size > 1:
        # Beside longer texts a text is rounded otherwise, in bfloat16 by more than the limit: repeat the baseline's batches.
        unexplained = context.batch_size.run(lambda size: evaluate(context.loaded, context.sequences, size, still)).nll
        unexplained -= context.intact.nll
    if abs(unexplained) <= DRIFT_LIMIT:
        return NumericalFloor(repeat=drift, rounding=context.rounding)
    if context.checksums and math.isfinite(unexplained) and checksum(context.loaded.model) == context.checksums:
        say(
            f"measured again, the loss of the intact model differs by {unexplained:.3g} nats per token, though every bit of "
            f"its weights is as before: its kernels on {context.loaded.device} are not repeatable"
        )
    else:
        raise WeightsNotRestored(
            f"after all edits were undone the baseline differs by {unexplained:.3g} nats per token",
            hint="the model is loaded afresh by the next run; please report this with the run's manifest.json",
        )
    return NumericalFloor(repeat=drift, rounding=context.rounding)
