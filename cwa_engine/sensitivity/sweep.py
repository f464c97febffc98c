"""Exact gradients with those of one decoder block alive at a time.

1. Each batch runs forward once without autograd, and what every block was called with is kept.
2. From the last block's output the model's own final norm and head give the loss and its gradient at that output; where
   there are two losses, see `totals`, steps 2 to 4 are for each.
3. From the last block down, each block is computed again with autograd from its kept input, and differentiated from the
   gradient of its output; after the last batch its statistics are given away and freed.
4. What comes before the first block is differentiated from the gradient of that block's input. A parameter that is used
   on both sides of the blocks, as a tied embedding is, has both parts, added before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import PaddedBatch, padded
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.chain import BlockTrace, Chain, chain_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.gradients import (
    Batch,
    OutsideGradients,
    Statistics,
    batches_for,
    block_gradients,
    statistics_of,
)
from cwa_engine.sensitivity.totals import Totals, totals_of

AfterBlock = Callable[[int, int], None]


@dataclass
class _Pass:
    """One batch on its way back: what its blocks were called with, and each loss's gradient as far as it has come down."""

    batch: Batch
    texts: PaddedBatch
    trace: BlockTrace
    where: tuple[int, int]
    gradients: list[Tensor] = field(default_factory=list)


def sweep(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    batch_size: int | None = None,
    after_block: AfterBlock = lambda done, total: None,
    seed: int = 0,
    scale: float | None = None,
) -> Iterator[Statistics]:
    """The statistics that `resident` gives, those of one block after the other, from the last block to what is outside.

    Raises NotAChain before anything is given away where the model's blocks do not each take and give one hidden state;
    RunFailed where a loss is not finite; GradientOverflow, maybe after some blocks, where a gradient of a scaled loss is
    not.
    """
    chain = chain_of(loaded)
    activations = Activations(loaded, needs, sequences) if needs.activations else None
    losses = totals_of(needs, sequences, seed, scale)
    batches = batches_for(loaded, sequences, needs, batch_size)
    passes = []
    record = activations.recorded() if activations else nullcontext()
    with record, torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            texts = padded(loaded, batch)
            if activations:
                activations.reading(batch[0])
            trace = chain.run_blocks(texts.ids, texts.attention_mask, with_tail=activations is not None)
            passes.append(_Pass(batch, texts, trace, (number, len(batches))))

    def statistics(names: Sequence[str]) -> Statistics:
        parameters = {name: loaded.model.get_parameter(name) for name in names}
        found = statistics_of(parameters, losses, activations, len(sequences))
        for totals in losses:
            totals.forget(names)
        return found

    blocks, by_block = len(chain.blocks), _names_by_block(loaded)
    outsides = [OutsideGradients(loaded, chain, totals) for totals in losses]
    for one in passes:
        for outside in outsides:
            texts = outside.totals.prepared(one.texts, one.batch)
            one.gradients.append(outside.tail(texts, one.trace, one.batch, one.where))
    after_block(1, blocks + 2)
    for index in reversed(range(blocks)):
        names = by_block.get(index, [])
        with chain.on_device(index):
            for one in passes:
                _through_block(loaded, chain, index, names, losses, one)
            yield statistics(names)
        after_block(1 + blocks - index, blocks + 2)
    for one in passes:
        for outside, gradient in zip(outsides, one.gradients, strict=True):
            outside.embedding(one.texts, one.batch, gradient)
    after_block(blocks + 2, blocks + 2)
    yield statistics(by_block.get(None, []))


def _names_by_block(loaded: LoadedModel) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for name, parameter in loaded.anatomy.parameters.items():
        found.setdefault(parameter.layer, []).append(name)
    return found


def _through_block(
    loaded: LoadedModel, chain: Chain, index: int, names: Sequence[str], losses: Sequence[Totals], one: _Pass
) -> None:
    """From the gradients of a block's output to those of its input; those of its parameters go to the totals.

    The block's call is not kept any longer. It is computed once for each loss.
    """
    call = one.trace.calls.pop(index)
    parameters = {name: loaded.model.get_parameter(name) for name in names}
    for number, totals in enumerate(losses):
        leaf = chain.to_device(call.hidden).detach().requires_grad_()
        with block_gradients(loaded, parameters, totals, one.batch) as plain:
            output = chain.run_block(index, call.with_hidden(leaf))
            torch.autograd.backward(output, one.gradients[number], inputs=[leaf, *plain])
        assert leaf.grad is not None
        one.gradients[number] = leaf.grad
