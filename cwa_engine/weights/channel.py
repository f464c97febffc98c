"""The life of a channel of the residual stream: where its spike is born, what makes it, where it is cancelled.

The token is the one, of all evaluation texts, at which |value| of the channel is largest behind any block. There the channel
is followed from block to block: its value v_l behind block l, and what the block writes, v_l - v_(l-1).

It is a spike if its largest |value| is at least 100 times the usual size: the median over all tokens of the root mean square
of a token's channels, behind the same block. (Sun et al. 2024 ask of massive activations a |value| of more than 100 and about
1,000 times the median.) The spike is born at the first block behind which |v_l| is at least half of the largest; it is
cancelled at the first block after the largest behind which |v_l| is at most a tenth of it. Layer -1 is what the first block
is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.damage.patch import patched
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import padded
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.chain import Chain, NotAChain, chain_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import target_name
from cwa_engine.questions.spike_removal import SPIKE
from cwa_engine.sensitivity.activations import linear_calls, linear_parameters
from cwa_engine.sensitivity.spikes import Rows
from cwa_engine.weight_rows import ChannelActivity, ChannelLayer, ChannelShare
from cwa_engine.weights.activity import ChannelRecord
from cwa_engine.weights.examined import ExaminedWeight, Unknown

BORN = 0.5  # of the largest |value|
CANCELLED = 0.1
SHARES = 8  # weights whose shares are shown
_READERS = ("q", "k", "v", "qkv", "up", "gate", "router", "head", "expert", "embedding")


@dataclass(frozen=True)
class ChannelLife:
    """What became of a channel at one token."""

    channel: int
    activity: ChannelActivity
    layers: tuple[ChannelLayer, ...]
    shares: tuple[ChannelShare, ...]
    unknown: str = ""


def residual_channel(parameter: Parameter, flat_index: int, width: int) -> int:
    """The channel of the residual stream of this width that a weight writes to, or else reads from. Raises Unknown."""
    place = parameter.place(flat_index)
    writes = _writes(parameter) and parameter.out_features == width
    if writes or (parameter.component == "norm" and parameter.is_vector and parameter.numel == width):
        return place.out_feature
    if parameter.component in _READERS and place.in_feature is not None and parameter.in_features == width:
        return place.in_feature
    raise Unknown("it neither writes to a channel of the residual stream nor reads one")


def _writes(parameter: Parameter) -> bool:
    """Whether it is of a layer that writes to the residual stream: an attention's output projection, a down projection."""
    return parameter.component in ("o", "down") or parameter.is_down


@torch.no_grad()
def channel_life(
    loaded: LoadedModel, weight: ExaminedWeight, sequences: Sequence[TokenSequence], report: Callable[[int], None]
) -> ChannelLife:
    """Find the token in one pass over all texts, and follow the channel there, with and without the weight.

    Raises Unknown where the model's blocks are no chain, and for a weight that has no channel of the residual stream.
    """
    try:
        chain = chain_of(loaded)
    except NotAChain as reason:
        raise Unknown(f"the residual stream cannot be followed: {reason}") from reason
    if not chain.batch_first:
        raise Unknown("the residual stream cannot be followed: its first axis is not that of texts")
    width = chain.first_input(torch.tensor([[0, 1]], device=loaded.device), None).shape[-1]
    channel = residual_channel(weight.parameter, weight.flat_index, width)
    activity = _largest(loaded, chain, channel, sequences, report)
    text, position = sequences[activity.text - 1], activity.position
    assert position is not None
    intact = _values(loaded, chain, text, channel, position)
    with patched(loaded.model, weight.alone, PERTURBATIONS["zero"], offsets=loaded.anatomy.offsets):
        damaged = _values(loaded, chain, text, channel, position)
    spikes = abs(activity.largest) >= SPIKE * activity.typical
    born, cancelled = _events(intact) if spikes else (None, None)
    unknown = ""
    if not spikes:
        times = abs(activity.largest) / activity.typical if activity.typical else 0.0
        unknown = (
            f"channel {channel} of the residual stream has no spike: its largest value is {times:.3g} times the usual "
            f"size, and a spike {SPIKE:g} times"
        )
    layers = tuple(
        ChannelLayer(
            layer=number - 1,
            value=value,
            damaged=damaged[number],
            written=value - (intact[number - 1] if number else 0.0),
            event="born" if number == born else "cancelled" if number == cancelled else "",
        )
        for number, value in enumerate(intact)
    )
    shares = _shares(loaded, weight, chain, text, channel, position, born - 1) if born else ()  # 0: before all blocks
    return ChannelLife(channel, activity, layers, shares, unknown)


def _events(values: Sequence[float]) -> tuple[int, int | None]:
    """(place at which the spike is born, place at which it is cancelled or None) among the values from layer -1 on."""
    sizes = [abs(value) for value in values]
    largest = max(sizes)
    peak = sizes.index(largest)
    born = next(place for place, size in enumerate(sizes) if size >= BORN * largest)
    after = (place for place in range(peak + 1, len(sizes)) if sizes[place] <= CANCELLED * largest)
    return born, next(after, None)


def _largest(
    loaded: LoadedModel, chain: Chain, channel: int, sequences: Sequence[TokenSequence], report: Callable[[int], None]
) -> ChannelActivity:
    """Where |value| of the channel is largest behind any block; of equal ones the first block."""
    path = loaded.anatomy.blocks_path
    records = [ChannelRecord("residual", f"{path}.{layer}", channel) for layer in range(len(chain.blocks))]
    order = {id(sequence): number for number, sequence in enumerate(sequences, start=1)}
    report(0)
    for done, (sequence,) in enumerate(loaded.batched(sequences, 1), start=1):
        for layer, hidden in enumerate(_stream(loaded, chain, sequence)[1:]):
            records[layer].take(hidden, order[id(sequence)], Rows(None, len(hidden)))
        report(done)
    found = [record.activity(loaded, sequences) for record in records]
    return max((activity for activity in found if activity), key=lambda activity: abs(activity.largest))


def _stream(loaded: LoadedModel, chain: Chain, text: TokenSequence) -> list[Tensor]:
    """The residual stream of one text: what the first block is given, and behind each block. [tokens, width] each"""
    batch = padded(loaded, [text])
    trace = chain.run_blocks(batch.ids, batch.attention_mask)
    given = [trace.calls[number].hidden[0] for number in range(len(chain.blocks))]
    return [*given, trace.last_hidden[0]]


def _values(loaded: LoadedModel, chain: Chain, text: TokenSequence, channel: int, position: int) -> list[float]:
    return [float(hidden[position, channel]) for hidden in _stream(loaded, chain, text)]


def _shares(
    loaded: LoadedModel,
    weight: ExaminedWeight,
    chain: Chain,
    text: TokenSequence,
    channel: int,
    position: int,
    layer: int,
) -> tuple[ChannelShare, ...]:
    """Each weight's share x w / y of what the module that writes most into the channel in a block writes there."""
    names = [
        name
        for name, parameter in loaded.anatomy.parameters.items()
        if parameter.layer == layer and _writes(parameter) and not parameter.is_vector
    ]
    only = loaded.with_parameters(names)
    found: list[tuple[float, str, int, Tensor]] = []  # |y|, parameter, expert, what it read

    def take(name: str, expert: int, inputs: Tensor, outputs: Tensor, rows: Rows | None) -> None:
        if channel >= outputs.shape[-1] or rows is None or rows.tokens != len(text.ids):
            return
        at = torch.arange(len(inputs)) if rows.chosen is None else rows.chosen.cpu()
        for place in (at == position).nonzero().flatten().tolist():
            output = outputs[place, channel].double().cpu()
            found.append((float(output), name, expert, inputs[place].double().cpu()))

    if linear_parameters(only):
        with linear_calls(only, take):
            _stream(loaded, chain, text)
    if not found:
        return ()
    output, name, expert, read = max(found, key=lambda entry: abs(entry[0]))
    parameter = loaded.anatomy.parameters[name]
    contributions = read * _row(loaded, parameter, expert, channel)
    order = contributions.abs().argsort(descending=True, stable=True)[:SHARES].tolist()
    own = parameter.place(weight.flat_index)
    if parameter == weight.parameter and own.out_feature == channel and (own.expert or 0) == expert:
        assert own.in_feature is not None
        order += [own.in_feature] if own.in_feature not in order else []
    return tuple(
        ChannelShare(
            target=target_name(parameter, "weight", parameter.flat_index(expert, channel, place)),
            share=float(contributions[place]) / output if output else 0.0,
            contribution=float(contributions[place]),
        )
        for place in order
    )


def _row(loaded: LoadedModel, parameter: Parameter, expert: int, out_feature: int) -> Tensor:
    """The weights of one out_feature, float64. [in]"""
    stored = loaded.model.get_parameter(parameter.name).detach()
    matrix = stored[expert] if parameter.experts else stored
    return (matrix.T if parameter.transposed else matrix)[out_feature].double().cpu()
