"""How far a damaged model's predictions are from the intact one's, whatever the right token is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import Padded, padded
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class Divergence:
    """Means over all scored tokens."""

    kl: float  # of the damaged from the intact prediction, nats per token
    top1_agreement: float  # share of tokens with the same likeliest prediction


@torch.no_grad()
def divergence(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    damaged: Callable[[], AbstractContextManager[object]],
    batch_size: int | None = None,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Divergence:
    """KL(intact ‖ damaged) and top-1 agreement; `damaged()` is the context in which the model is damaged.

    Each batch is predicted twice, so nothing is kept: the intact predictions of 100,000 tokens would take 20 GB.
    """
    kl_sum, agreed, tokens, done = 0.0, 0, 0, 0
    for batch in loaded.batched(sequences, batch_size):
        texts = padded(loaded, batch)
        scored = texts.scored[:, 1:].bool()
        intact = _predictions(loaded, texts)
        with damaged():
            changed = _predictions(loaded, texts)
        before, after = intact[scored].log_softmax(-1), changed[scored].log_softmax(-1)  # [tokens, vocabulary]
        kl_sum += float((before.exp() * (before - after)).sum(-1).double().sum())
        agreed += int((before.argmax(-1) == after.argmax(-1)).sum())
        tokens += int(scored.sum())
        done += len(batch)
        after_batch(done)
    return Divergence(kl_sum / tokens, agreed / tokens)


def _predictions(loaded: LoadedModel, texts: Padded) -> Tensor:
    """Logits for every token but the first, in float32 or better. [B, T-1, vocabulary]"""
    logits = logits_of(loaded.model, texts.ids, texts.attention_mask)[:, :-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
