"""Measuring a damaged model from its first changed block on. Earlier blocks give what they gave in the intact model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.evaluation.perplexity import PaddedBatch, collect, nll_from, padded
from cwa_engine.models.chain import BlockTrace, Chain, ResumePoint, chain_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.memory import free_bytes

SHARE = 0.1  # hidden states may fill this share of free memory,
WEIGHTS_SHARE = 0.5  # but no more than this share of the weights' own size


@dataclass(frozen=True)
class CachedStates:
    """Inputs of the intact model's blocks: of every block, or of every second, third ... if memory is short."""

    loaded: LoadedModel
    chain: Chain
    sequences: Sequence[TokenSequence]
    batches: list[list[TokenSequence]]
    texts: list[PaddedBatch]
    hidden: list[dict[int, Tensor]]  # of each batch: block -> its input
    traces: list[BlockTrace]  # of each batch
    blocks: tuple[int, ...]  # ascending; a batch may resume at each but the first, where it is computed whole

    def evaluate(self, names: Iterable[str], after_batch: Callable[[int], None] = lambda done: None) -> Evaluation:
        """NLL sums of a model that differs from the intact one in these parameters only; equal to `evaluate`'s bit for bit."""
        first = self.chain.first_block(self.loaded, names)

        def nll_sums(number: int) -> Tensor:
            return nll_from(self.loaded, self.chain, self.start(number, first), self.texts[number])

        return collect(self.sequences, self.batches, nll_sums, after_batch)

    def start(self, number: int, first: int) -> ResumePoint | None:
        """The resume point of a batch if nothing changes before block `first`; None for a whole forward pass."""
        trace = self.traces[number]
        if first == len(self.chain.blocks):
            return self.chain.tail(trace)
        block = max(block for block in self.blocks if block <= first)
        return ResumePoint(block, self.chain.to_device(self.hidden[number][block]), trace.outputs) if block else None


@torch.inference_mode()
def cache_states(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    batch_size: int | None,
    share: float = 1.0,
    after_batch: Callable[[int], None] = lambda done: None,
) -> CachedStates:
    """Run the intact model over the texts and keep its blocks' inputs, in `share` of the memory of `allowed_bytes`.

    Raises NotAChain.
    """
    chain = chain_of(loaded)
    batches = loaded.batched(sequences, batch_size)
    texts = [padded(loaded, batch) for batch in batches]
    blocks = _affordable(loaded, chain, texts[0], len(batches), share)
    hidden, traces = [], []
    done = 0
    for batch, some in zip(batches, texts, strict=True):
        passed = chain.run_blocks(some.ids, some.attention_mask, keep=lambda index: index in blocks[1:])
        hidden.append({index: call.hidden for index, call in passed.calls.items()})
        passed.calls.clear()
        traces.append(passed)
        done += len(batch)
        after_batch(done)
    return CachedStates(loaded, chain, sequences, batches, texts, hidden, traces, blocks)


def _affordable(loaded: LoadedModel, chain: Chain, largest: PaddedBatch, batches: int, share: float) -> tuple[int, ...]:
    """Evenly spaced blocks: as many as there is memory to keep the inputs of."""
    each = chain.first_input(largest.ids, largest.attention_mask).nbytes * batches
    allowed = max(1, int(share * allowed_bytes(loaded)) // each)
    step = -(-len(chain.blocks) // allowed)
    return tuple(range(0, len(chain.blocks), step))


def allowed_bytes(loaded: LoadedModel) -> int:
    """Memory that cached hidden states may take."""
    return int(min(SHARE * loaded.free_as_weights(free_bytes), WEIGHTS_SHARE * loaded.size_bytes))
