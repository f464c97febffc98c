"""What the channels that a weight reads and writes carry, over the evaluation texts.

A weight W[out, in] of a linear layer reads channel `in` of the layer's input and writes channel `out` of its output. One of
a norm or of another vector reads and writes the channel of its own index, a bias only writes. One of an embedding writes
channel `in` of the rows of its token; where the embedding is tied to the head, it also reads that channel there and writes
the logit of its token.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cwa_engine.damage.copies import owners_of
from cwa_engine.data.token_text import token_text
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import linear_calls, linear_parameters
from cwa_engine.sensitivity.spikes import Rows
from cwa_engine.weight_rows import ChannelActivity, TokenActivation
from cwa_engine.weights.examined import ExaminedWeight, Unknown

TOP_TOKENS = 5


@dataclass
class ChannelRecord:
    """One channel of what a module is given or gives, while texts pass one at a time."""

    side: str  # "input" or "output"
    module: str
    channel: int
    _sizes: list[Tensor] = field(default_factory=list)  # root mean squares of all channels, by token
    _top: list[tuple[float, int, int, float, int | None]] = field(default_factory=list)

    def take(self, values: Tensor, text: int, rows: Rows | None) -> None:
        """`values` [tokens, channels] of one call, on the text of this number, and which of its tokens these are."""
        wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        self._sizes.append(wide.square().mean(1).sqrt().cpu())
        channel = wide[:, self.channel].cpu()
        picked = rows.chosen.cpu() if rows and rows.chosen is not None else None
        for place in channel.abs().topk(min(TOP_TOKENS, len(channel))).indices.tolist():
            value = float(channel[place])
            position = None if rows is None else int(picked[place]) if picked is not None else place
            # Of equal activations the earliest counts.
            self._top.append((-abs(value), text, place, value, position))
        self._top = heapq.nsmallest(TOP_TOKENS, self._top, key=lambda entry: entry[:3])

    def activity(self, loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> ChannelActivity | None:
        """What was recorded; None where nothing passed."""
        if not self._top:
            return None
        sizes = torch.cat(self._sizes)
        sizes = sizes[sizes > 0]
        top = tuple(
            token_activation(loaded, sequences, text, position, value) for _, text, _, value, position in self._top
        )
        return ChannelActivity(
            side=self.side,
            module=self.module,
            channel=self.channel,
            largest=top[0].value,
            typical=float(sizes.median()) if len(sizes) else 0.0,
            token=top[0].token,
            token_id=top[0].token_id,
            position=top[0].position,
            text=top[0].text,
            top_tokens=top,
        )


def token_activation(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], text: int, position: int | None, value: float
) -> TokenActivation:
    """An activation at a position of a text, the first text being 1."""
    token_id = None if position is None else sequences[text - 1].ids[position]
    token = None if token_id is None else token_text(loaded.tokenizer, token_id)
    return TokenActivation(value, token, token_id, position, text)


def channel_activity(
    loaded: LoadedModel,
    weight: ExaminedWeight,
    sequences: Sequence[TokenSequence],
    run: Callable[[TokenSequence], object],
    report: Callable[[int], None],
) -> tuple[ChannelActivity, ...]:
    """What passes through the channels of a weight while `run` sends one text after the other through the model.

    `report` hears how many are done. Raises Unknown for a module that is not given one tensor and does not give one, or
    that was never called.
    """
    recorder = _Recorder(loaded, weight)
    report(0)
    with recorder.recorded(), torch.no_grad():
        for number, sequence in enumerate(sequences, start=1):
            recorder.text, recorder.tokens = number, len(sequence.ids)
            run(sequence)
            report(number)
    found = [record.activity(loaded, sequences) for record in recorder.records.values()]
    known = tuple(activity for activity in found if activity)
    if not known:
        raise Unknown(recorder.refused or f"nothing passed through {weight.parameter.name} as one tensor")
    return known


class _Recorder:
    """Records the channels of one weight in every module that holds its parameter."""

    def __init__(self, loaded: LoadedModel, weight: ExaminedWeight) -> None:
        self._loaded, self._weight = loaded, weight
        self.records: dict[tuple[str, str], ChannelRecord] = {}
        self.text = self.tokens = 0
        self.refused = ""

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record whatever passes meanwhile."""
        name = self._weight.parameter.name
        only = self._loaded.with_parameters([name])
        with ExitStack() as stack:
            if name in linear_parameters(only):
                stack.enter_context(linear_calls(only, self._linear))
            else:
                names = {id(module): path for path, module in self._loaded.model.named_modules()}
                for module, leaf in owners_of(self._loaded.model)[name]:
                    handle = module.register_forward_hook(self._hook(names[id(module)], leaf))
                    stack.callback(handle.remove)
            yield

    def _linear(self, name: str, expert: int, inputs: Tensor, outputs: Tensor, rows: Rows | None) -> None:
        place = self._weight.parameter.place(self._weight.flat_index)
        if expert != (place.expert or 0) or not len(inputs):
            return
        module = name.removesuffix(".weight")
        assert place.in_feature is not None
        self._take("input", module, place.in_feature, inputs, rows)
        self._take("output", module, place.out_feature, outputs, rows)

    def _hook(self, path: str, leaf: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            given = args[0] if args else None
            if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                self.refused = f"{path} is not given one tensor, or does not give one"
                return
            reads, writes = _channels(module, leaf, self._weight.parameter, self._weight.flat_index)
            for side, channel, tensor in (("input", reads, given), ("output", writes, output)):
                if channel is None:
                    continue
                if tensor.dim() < 2 or not channel < tensor.shape[-1]:
                    self.refused = f"the channels of {path} are not the last axis of its {side}"
                    continue
                values = tensor.detach().flatten(0, -2)
                known = Rows(None, len(values)) if len(values) == self.tokens else None
                self._take(side, path, channel, values, known)

        return hook

    def _take(self, side: str, module: str, channel: int, values: Tensor, rows: Rows | None) -> None:
        record = self.records.setdefault((module, side), ChannelRecord(side, module, channel))
        record.take(values, self.text, rows)


def _channels(module: nn.Module, leaf: str, parameter: Parameter, flat_index: int) -> tuple[int | None, int | None]:
    """The channels that a weight reads and writes in a module that has it; None for none, or one that is not known."""
    place = parameter.place(flat_index)
    if isinstance(module, nn.Embedding):
        return None, place.in_feature
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return (place.in_feature if leaf == "weight" else None), place.out_feature
    if parameter.is_vector and parameter.experts is None:
        return (None if leaf == "bias" else place.out_feature), place.out_feature
    return None, None
