"""The largest output of every down projection in one pass over some texts, and the weight behind the largest of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import measured_nll
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import TopWeight
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.ranking import describe_unit
from cwa_engine.sensitivity.spikes import Spikes


@dataclass(frozen=True)
class SpikeRecording:
    """The spikes of all down projections in view, and the loss of the texts that they were recorded on."""

    spikes: dict[str, Spikes]  # by parameter
    largest: float  # output of any of them, times what its module usually writes; 0 where there is none
    maker: TopWeight | None  # the weight that makes most of it; None where no weight adds to it, but a bias
    nll: float  # nats per token


@torch.no_grad()
def record_spikes(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], step: int, tick: Callable[[int], None]
) -> SpikeRecording:
    """One forward pass over all texts by the model as it is; `tick` hears how many are done."""
    activations = Activations(loaded, Needs.SPIKES, sequences)
    nll_sum = 0.0
    tick(0)
    with activations.recorded():
        for done, batch in enumerate(loaded.batched(sequences, 1), start=1):
            activations.reading(batch[0])
            nll_sum += float(measured_nll(loaded, batch).cpu().double().sum())
            tick(done)
    found = {name: activations.fields(name, len(sequences), False)["spikes"] for name in loaded.anatomy.parameters}
    spikes: dict[str, Spikes] = {name: recorded for name, recorded in found.items() if recorded}
    sizes = {name: abs(recorded.largest[2]) / recorded.typical for name, recorded in spikes.items()}
    nll = nll_sum / sum(sequence.scored_tokens for sequence in sequences)
    if not sizes:
        return SpikeRecording(spikes, 0.0, None, nll)
    name = max(sizes, key=sizes.__getitem__)
    return SpikeRecording(spikes, sizes[name], _maker(loaded, name, spikes[name], step), nll)


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
