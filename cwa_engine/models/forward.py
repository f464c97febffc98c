"""A model's own forward pass."""

from __future__ import annotations

from torch import Tensor, nn


def logits_of(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, vocabulary] from token ids and an attention mask, [B, T] both; no mask where there is no padding."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits
