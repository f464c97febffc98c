"""Measuring from the first changed block on: what comes before it gives what it gave in the intact model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.evaluation.perplexity import Padded, collect, nll_from, padded
from cwa_engine.models.chain import Begin, Chain, Stations, chain_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.memory import free_bytes

SHARE = 0.1  # of free memory may be filled with hidden states,
WEIGHTS_SHARE = 0.5  # but no more than this share of the weights' own size


@dataclass(frozen=True)
class KeptStates:
    """The hidden states that the intact model's blocks were given, at every block or at every second, third ..."""

    loaded: LoadedModel
    chain: Chain
    sequences: Sequence[TokenSequence]
    batches: list[list[TokenSequence]]
    texts: list[Padded]
    hidden: list[dict[int, Tensor]]  # of each batch: block -> what it was given
    stations: list[Stations]
    blocks: tuple[int, ...]  # where a batch may begin, ascending; at the first it is computed whole

    def evaluate(self, names: Iterable[str], after_batch: Callable[[int], None] = lambda done: None) -> Evaluation:
        """NLL sums while only these parameters differ from the intact model's, to the last bit what `evaluate` gives."""
        first = self.chain.first_block(self.loaded, names)

        def nll_sums(number: int) -> Tensor:
            return nll_from(self.loaded, self.chain, self.begin(number, first), self.texts[number])

        return collect(self.sequences, self.batches, nll_sums, after_batch)

    def begin(self, number: int, first: int) -> Begin | None:
        """Where a batch begins if nothing changes before block `first`; None for a whole forward pass."""
        stations = self.stations[number]
        if first == len(self.chain.blocks):
            return self.chain.tail(stations)
        block = max(block for block in self.blocks if block <= first)
        return Begin(block, self.chain.fetched(self.hidden[number][block]), stations.outputs) if block else None


@torch.inference_mode()
def keep_states(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    batch_size: int | None,
    share: float = 1.0,
    after_batch: Callable[[int], None] = lambda done: None,
) -> KeptStates:
    """Run the intact model over the texts and keep what its blocks are given, in this share of what may be kept.

    Raises NotAChain.
    """
    chain = chain_of(loaded)
    batches = loaded.batched(sequences, batch_size)
    texts = [padded(loaded, batch) for batch in batches]
    blocks = _affordable(loaded, chain, texts[0], len(batches), share)
    hidden, stations = [], []
    done = 0
    for batch, some in zip(batches, texts, strict=True):
        passed = chain.through(some.ids, some.attention_mask, keep=lambda index: index in blocks[1:])
        hidden.append({index: call.hidden for index, call in passed.calls.items()})
        passed.calls.clear()
        stations.append(passed)
        done += len(batch)
        after_batch(done)
    return KeptStates(loaded, chain, sequences, batches, texts, hidden, stations, blocks)


def _affordable(loaded: LoadedModel, chain: Chain, largest: Padded, batches: int, share: float) -> tuple[int, ...]:
    """As many evenly spaced blocks as there is memory to keep the inputs of."""
    each = chain.embedded(largest.ids, largest.attention_mask).nbytes * batches
    allowed = max(1, int(share * allowed_bytes(loaded)) // each)
    step = -(-len(chain.blocks) // allowed)
    return tuple(range(0, len(chain.blocks), step))


def allowed_bytes(loaded: LoadedModel) -> int:
    """How much may be kept."""
    return int(min(SHARE * free_bytes(loaded.device), WEIGHTS_SHARE * loaded.size_bytes))
