"""Perplexity: exp of the mean token negative log-likelihood, padding excluded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.errors import RunFailed
from cwa_engine.models.loading import LoadedModel
from cwa_engine.result import Baseline, exp
from cwa_engine.statistics import Array

PROTOCOL = "one text a sequence, the first token not scored, at most {seq_len} tokens"
PACKED_PROTOCOL = "texts joined and cut into windows of {seq_len} tokens, the first token of each not scored"


@dataclass(frozen=True)
class Evaluation:
    """NLL of each sequence, so that any statistic can be made from it."""

    nll_sums: Array  # nats [sequences]
    tokens: Array  # scored tokens [sequences]

    @property
    def nll(self) -> float:
        """Mean NLL in nats per token; NaN or infinite where the model collapsed."""
        return float(self.nll_sums.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        return exp(self.nll)


def predictions(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> tuple[Tensor, Tensor, Tensor]:
    """What the model predicts for every token but the first: logits [B, T-1, vocabulary], ids and mask [B, T-1].

    In float32 or better. Shorter sequences are padded on the right and masked, so padding neither scores nor is
    attended to.
    """
    longest = max(len(sequence.ids) for sequence in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
    ids, mask = ids.to(loaded.device), mask.to(loaded.device)
    attention_mask = None if len(batch) == 1 else mask
    logits = loaded.model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits  # [B, T, vocabulary]
    precision = torch.promote_types(logits.dtype, torch.float32)  # half precision cannot add up a loss
    return logits[:, :-1].to(precision), ids[:, 1:], mask[:, 1:]


def sequence_nll(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> Tensor:
    """Summed token NLL of each sequence of a batch, differentiable. [batch]"""
    logits, ids, mask = predictions(loaded, batch)
    token_nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
    return (token_nll.view(len(batch), -1) * mask).sum(dim=1)


def non_finite_loss(loss: Tensor, batch: int, batches: int) -> RunFailed:
    """The error that ends scoring where a loss overflows or is NaN."""
    return RunFailed(
        f"the loss of scoring batch {batch} of {batches} is {loss.item()}",
        hint="float16 overflows easily; try --dtype float32, and look at that batch's texts",
    )


@torch.inference_mode()
def evaluate(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    batch_size: int | None = None,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """NLL sums in the order of `sequences`; `after_batch(done)` hears how many are measured."""
    measured: dict[int, float] = {}
    for batch in batched(sequences, batch_size or loaded.default_batch_size):
        sums = sequence_nll(loaded, batch).double().tolist()
        measured.update(zip(map(id, batch), sums, strict=True))
        after_batch(len(measured))
    return Evaluation(
        nll_sums=np.array([measured[id(sequence)] for sequence in sequences]),
        tokens=np.array([sequence.scored_tokens for sequence in sequences], dtype=np.float64),
    )


def baseline_of(evaluation: Evaluation, sequences: Sequence[TokenSequence], seq_len: int, packed: bool) -> Baseline:
    """The figures of the intact model, with the protocol they hold under."""
    utf8_bytes = sum(sequence.utf8_bytes for sequence in sequences)
    return Baseline(
        nll=evaluation.nll,
        perplexity=evaluation.perplexity,
        bits_per_byte=float(evaluation.nll_sums.sum()) / (math.log(2) * utf8_bytes),
        sequences=len(sequences),
        tokens=int(evaluation.tokens.sum()),
        protocol=(PACKED_PROTOCOL if packed else PROTOCOL).format(seq_len=seq_len),
    )
