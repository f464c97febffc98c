"""A model's own forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cwa_engine.base.cancellation import current_check


def logits_of(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Logits [B, T, vocabulary] of token ids [B, T]. `mask` is the attention mask [B, T], or None without padding."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def cancel_between_blocks(model: nn.Module) -> list[RemovableHandle]:
    """Check for cancelling before each block, in forward and backward passes: on a CPU one batch may take minutes.

    Returns the handles of the hooks that do it.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block.register_forward_pre_hook(_before_block) for blocks in lists for block in blocks]


def _before_block(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    check = current_check()  # backward on a GPU is in a thread of autograd's, which has no check of its own
    check()
    for value in inputs[:1]:
        if isinstance(value, Tensor) and value.requires_grad:
            value.register_hook(lambda gradient: check())  # type: ignore[no-untyped-call]
