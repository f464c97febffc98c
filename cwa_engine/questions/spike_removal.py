"""`--iterate`: zero the weight behind the model's largest spike, record again, and repeat until the spike is gone.

The largest spike is the largest output of a down projection, over what its module usually writes; the weight that makes the
largest share of it is zeroed beside those of the steps before. A spike is at least 100 times the usual size. It is gone
when nothing in the model is a spike, or is a tenth of the first. Source: Yu et al. 2024, section 3.1, who repeat until the
large activations are greatly suppressed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cwa_engine.base.events import Emit, Note, Progress
from cwa_engine.damage.cases import zeroed_together
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import measured_nll
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import SpikeRemoval, SpikeRemovalStep, TopWeight, removal_sentence, to_plain
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.ranking import describe_unit
from cwa_engine.sensitivity.spikes import Spikes, spike_of

STAGE = "iterate"
# Times the usual size. 23 of the down projections of SmolLM2-135M reach 12 to 83, seven 219 to 18,320; Gemma 3 270M: 20 to 132.
SPIKE = 100.0
GONE = 0.1  # of the first spike


@dataclass(frozen=True)
class _Recording:
    """The spikes of all down projections in view, and the loss of the texts that they were recorded on."""

    spikes: dict[str, Spikes]  # by parameter
    largest: float  # output of any of them, times what its module usually writes; 0 where there is none
    maker: TopWeight | None  # the weight that makes most of it; None where no weight adds to it, but a bias
    nll: float  # nats per token


def remove_spikes(loaded: LoadedModel, sequences: Sequence[TokenSequence], most: int, emit: Emit) -> SpikeRemoval:
    """Zero at most so many weights, one after the other; all are put back before this returns or raises."""
    zeroed: list[TopWeight] = []
    steps: list[SpikeRemovalStep] = []
    passes = 0

    def record() -> _Recording:
        nonlocal passes
        passes += 1

        def tick(done: int) -> None:
            before, total = (passes - 1) * len(sequences), (most + 1) * len(sequences)
            emit(Progress(STAGE, before + done, total, "sequence"))

        with zeroed_together(loaded, zeroed):
            return _recorded(loaded, sequences, len(zeroed) + 1, tick)

    first = now = record()
    least = max(SPIKE, GONE * first.largest)
    while len(steps) < most and now.maker and least <= now.largest < math.inf:
        before = now
        zeroed.append(now.maker)
        now = record()
        steps.append(_step(loaded, zeroed[-1], before, now, first))
        emit(Note(f"{steps[-1].target} makes {steps[-1].share:.0%} of the largest spike"))
    removal = SpikeRemoval(first.largest, now.largest, least, now.largest < least, tuple(steps))
    emit(Note(removal_sentence(to_plain(removal))))
    return removal


@torch.no_grad()
def _recorded(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], step: int, tick: Callable[[int], None]
) -> _Recording:
    """One forward pass over all texts by the model as it is; `tick` hears how many are done."""
    activations = Activations(loaded, Needs.SPIKES, sequences)
    nll_sum = 0.0
    tick(0)
    with activations.recorded():
        for done, batch in enumerate(loaded.batched(sequences, 1), start=1):
            activations.reading(batch[0])
            nll_sum += float(measured_nll(loaded, batch).double().sum())
            tick(done)
    found = {name: activations.fields(name, len(sequences), False)["spikes"] for name in loaded.anatomy.parameters}
    spikes: dict[str, Spikes] = {name: recorded for name, recorded in found.items() if recorded}
    sizes = {name: abs(recorded.largest[2]) / recorded.typical for name, recorded in spikes.items()}
    nll = nll_sum / sum(sequence.scored_tokens for sequence in sequences)
    if not sizes:
        return _Recording(spikes, 0.0, None, nll)
    name = max(sizes, key=sizes.__getitem__)
    return _Recording(spikes, sizes[name], _maker(loaded, name, spikes[name], step), nll)


def _maker(loaded: LoadedModel, name: str, spikes: Spikes, step: int) -> TopWeight | None:
    """The weight that makes the largest share of a module's largest output; None where there is none."""
    parameter, (expert, out_feature, output) = loaded.anatomy.parameters[name], spikes.largest
    shares = spikes.read(expert, out_feature) * _row(loaded, name, expert, out_feature) / output
    in_feature = int(shares.argmax())
    if not shares[in_feature] > 0:
        return None
    flat_index = parameter.flat_index(expert, out_feature, in_feature)
    return describe_unit(loaded, parameter, "weight", flat_index, step, None)


def _row(loaded: LoadedModel, name: str, expert: int, out_feature: int) -> torch.Tensor:
    """The weights of an out_feature. [in]"""
    parameter, stored = loaded.anatomy.parameters[name], loaded.model.get_parameter(name).detach()
    matrix = stored[expert] if parameter.experts else stored
    return (matrix.T if parameter.transposed else matrix)[out_feature]


def _step(
    loaded: LoadedModel, weight: TopWeight, before: _Recording, after: _Recording, first: _Recording
) -> SpikeRemovalStep:
    spike = spike_of(loaded, before.spikes[weight.parameter], weight)
    assert weight.out_feature is not None
    left = after.spikes[weight.parameter].matrices[weight.expert or 0].output[weight.out_feature]
    return SpikeRemovalStep(
        step=weight.rank,
        target=weight.target,
        share=spike.share,
        output=spike.output,
        output_after=float(left),
        times_typical=spike.times_typical,
        largest_after=after.largest,
        delta_nll=after.nll - first.nll,
        token=spike.token,
        token_id=spike.token_id,
        position=spike.position,
        text=spike.text,
    )
