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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.damage.patch import patched
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import padded
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.chain import NotAChain, chain_of
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


class ChannelSearch:
    """Follows the channel of a weight while texts pass, and finds the token at which it is largest."""

    def __init__(self, loaded: LoadedModel, weight: ExaminedWeight, sequences: Sequence[TokenSequence]) -> None:
        """Raises Unknown where the blocks are no chain, and for a weight that has no channel of the residual stream."""
        try:
            self._chain = chain_of(loaded)
        except NotAChain as reason:
            raise Unknown(f"the residual stream cannot be followed: {reason}") from reason
        if not self._chain.batch_first:
            raise Unknown("the residual stream cannot be followed: its first axis is not that of texts")
        parameter, outside = weight.parameter, self._chain.before | self._chain.after
        if parameter.layer is None and parameter.name not in outside:
            raise Unknown("texts do not pass through it")
        with torch.no_grad():
            width = self._chain.first_input(torch.tensor([[0, 1]], device=loaded.device), None).shape[-1]
        self.channel = residual_channel(parameter, weight.flat_index, width)
        self._loaded, self._weight, self._sequences = loaded, weight, sequences
        self._numbers = {id(sequence): number for number, sequence in enumerate(sequences, start=1)}
        self._records = [
            ChannelRecord("residual", f"{loaded.anatomy.blocks_path}.{layer}", self.channel)
            for layer in range(len(self._chain.blocks))
        ]

    def read(self, sequence: TokenSequence) -> None:
        """Send one of the texts through the model as it is."""
        for record, hidden in zip(self._records, self._stream(sequence, with_tail=True)[1:], strict=True):
            record.take(hidden, self._numbers[id(sequence)], Rows(None, len(hidden)))

    @torch.no_grad()
    def life(self) -> ChannelLife:
        """The channel at the token where it is largest, with the weight and without it, when all texts have been read."""
        activity = self._largest()
        text, position = self._sequences[activity.text - 1], activity.position
        assert position is not None
        model, offsets = self._loaded.model, self._loaded.anatomy.offsets
        intact = self._values(text, position)
        with patched(model, self._weight.alone, PERTURBATIONS["zero"], offsets=offsets):
            damaged = self._values(text, position)
        times = abs(activity.largest) / activity.typical if activity.typical else 0.0
        born, cancelled = _events(intact) if times >= SPIKE else (None, None)
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
        if born is not None:
            shares = self._shares(text, position, born - 1) if born else ()  # 0: it is there before all blocks
            return ChannelLife(self.channel, activity, layers, shares)
        why = f"its largest value is {times:.3g} times the usual size, and a spike at least {SPIKE:g} times"
        none = f"channel {self.channel} of the residual stream has no spike: {why}"
        return ChannelLife(self.channel, activity, layers, (), none)

    def _largest(self) -> ChannelActivity:
        """Where |value| of the channel is largest behind any block; of equal ones the first block."""
        found = (record.activity(self._loaded, self._sequences) for record in self._records)
        return max((activity for activity in found if activity), key=lambda activity: abs(activity.largest))

    def _stream(self, text: TokenSequence, with_tail: bool = False) -> list[Tensor]:
        """The residual stream of one text: what the first block is given, and behind each block. [tokens, width] each"""
        batch = padded(self._loaded, [text])
        trace = self._chain.run_blocks(batch.ids, batch.attention_mask, with_tail=with_tail)
        given = [trace.calls[number].hidden[0] for number in range(len(self._chain.blocks))]
        return [*given, trace.last_hidden[0]]

    def _values(self, text: TokenSequence, position: int) -> list[float]:
        return [float(hidden[position, self.channel]) for hidden in self._stream(text)]

    def _shares(self, text: TokenSequence, position: int, layer: int) -> tuple[ChannelShare, ...]:
        """Each weight's share x w / y of what the module that writes most into the channel in a block writes there."""
        written = self._written(text, position, layer)
        if not written:
            return ()
        most = max(written, key=lambda entry: abs(entry.output))
        contributions = most.read * _row(self._loaded, most.parameter, most.expert, self.channel)
        order = contributions.abs().argsort(descending=True, stable=True)[:SHARES].tolist()
        own = most.parameter.place(self._weight.flat_index)
        if most.parameter == self._weight.parameter and (own.out_feature, own.expert or 0) == (
            self.channel,
            most.expert,
        ):
            order += [own.in_feature] if own.in_feature not in order else []
        return tuple(
            ChannelShare(
                target=target_name(
                    most.parameter, "weight", most.parameter.flat_index(most.expert, self.channel, in_feature)
                ),
                share=float(contributions[in_feature]) / most.output if most.output else 0.0,
                contribution=float(contributions[in_feature]),
            )
            for in_feature in order
        )

    def _written(self, text: TokenSequence, position: int, layer: int) -> list[_Written]:
        """What each matrix of a block that writes to the residual stream writes into the channel at one token."""
        parameters = self._loaded.anatomy.parameters
        names = [n for n, p in parameters.items() if p.layer == layer and _writes(p) and not p.is_vector]
        only = self._loaded.with_parameters(names)
        found: list[_Written] = []

        def take(name: str, expert: int, inputs: Tensor, outputs: Tensor, rows: Rows | None) -> None:
            if self.channel >= outputs.shape[-1] or rows is None or rows.tokens != len(text.ids):
                return
            at = torch.arange(len(inputs)) if rows.chosen is None else rows.chosen.cpu()
            for place in (at == position).nonzero().flatten().tolist():
                output, read = outputs[place, self.channel].cpu().double(), inputs[place].cpu().double()
                found.append(_Written(parameters[name], expert, float(output), read))

        if linear_parameters(only):
            with linear_calls(only, take):
                self._stream(text)
        return found


@dataclass(frozen=True)
class _Written:
    """What one matrix reads at a token, and what it makes of it in the channel."""

    parameter: Parameter
    expert: int
    output: float
    read: Tensor  # float64 [in]


def _events(values: Sequence[float]) -> tuple[int, int | None]:
    """(place at which the spike is born, place at which it is cancelled or None) among the values from layer -1 on."""
    sizes = [abs(value) for value in values]
    largest = max(sizes)
    peak = sizes.index(largest)
    born = next(place for place, size in enumerate(sizes) if size >= BORN * largest)
    after = (place for place in range(peak + 1, len(sizes)) if sizes[place] <= CANCELLED * largest)
    return born, next(after, None)


def _row(loaded: LoadedModel, parameter: Parameter, expert: int, out_feature: int) -> Tensor:
    """The weights of one out_feature, float64. [in]"""
    stored = loaded.model.get_parameter(parameter.name).detach()
    matrix = stored[expert] if parameter.experts else stored
    return (matrix.T if parameter.transposed else matrix)[out_feature].cpu().double()
