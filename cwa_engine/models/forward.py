"""A model's own forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cwa_engine.base.cancellation import check_cancelled


def logits_of(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, vocabulary] from token ids and an attention mask, [B, T] both; no mask where there is no padding."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def cancel_between_blocks(model: nn.Module) -> list[RemovableHandle]:
    """Let a pass be cancelled before each block, on its way back as well: on a CPU one batch may take minutes.

    Gives the hooks that do it.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block.register_forward_pre_hook(_before_block) for blocks in lists for block in blocks]


def _before_block(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    check_cancelled()
    for value in inputs[:1]:
        if isinstance(value, Tensor) and value.requires_grad:
            value.register_hook(_after_backward)  # type: ignore[no-untyped-call]


def _after_backward(gradient: Tensor) -> None:
    check_cancelled()
