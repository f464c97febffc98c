"""Loss scaling for float16, where gradients below 6e-8 vanish and gradients above 65,504 overflow.

The loss is multiplied by a power of two before the backward pass, and every gradient is divided by it in float32. This
changes no digit of a gradient that neither vanishes nor overflows (Micikevicius et al. 2018). Other dtypes have the range
of float32 and need no scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from cwa_engine.base.errors import RunFailed
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import non_finite_loss
from cwa_engine.models.chain import has_no_values

STEP = 4  # the scale is divided by 2**STEP after an overflow
LEAST = -16  # power of two, relative to the number of tokens, below which float16 cannot hold the gradients

T = TypeVar("T")
Where = tuple[int, int]  # (number of a batch, counted from 1; number of batches)


class GradientOverflow(Exception):
    """A gradient is infinite or NaN although the loss is finite."""


class MeanLoss:
    """The mean token NLL over some sequences, multiplied by `scale` (if any) for the backward pass."""

    def __init__(self, sequences: Sequence[TokenSequence], scale: float | None = None) -> None:
        self.tokens = sum(sequence.scored_tokens for sequence in sequences)
        self._scale = scale

    def of(self, nll_sums: Tensor, where: Where) -> Tensor:
        """The share of some sequences, or of some of their tokens, in the mean. Raises RunFailed if it is not finite."""
        loss = nll_sums.sum() / self.tokens
        if not has_no_values(loss) and not torch.isfinite(loss):
            raise non_finite_loss(loss, *where)
        return loss if self._scale is None else loss * self._scale

    def unscaled(self, gradient: Tensor) -> Tensor:
        """A gradient of the loss without the scale, in float32 or better. Raises GradientOverflow."""
        fresh = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if self._scale is None:
            return fresh
        if not has_no_values(fresh) and not fresh.isfinite().all():
            raise GradientOverflow
        return fresh / self._scale


class LossScale:
    """The factor of the loss. It is reduced when a gradient overflows, and stays reduced.

    It starts at the power of two next above the number of scored tokens. The loss is a mean over these tokens, so with
    this factor the gradient of a single token's NLL passes through float16 at its own size.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None] = lambda text: None) -> None:
        self._needed = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        self._say = say
        self._power = 0

    def of(self, sequences: Sequence[TokenSequence]) -> float | None:
        """The factor for the mean NLL over these sequences; None for a model that is not in float16."""
        if not self._needed:
            return None
        tokens = sum(sequence.scored_tokens for sequence in sequences)
        return 2.0 ** (math.ceil(math.log2(tokens)) + self._power)

    def run(self, work: Callable[[], T]) -> T:
        """Call `work`, which asks for the factor. After an overflow, call it again from the beginning with a smaller factor.

        Raises RunFailed if gradients overflow with every factor.
        """
        while True:
            try:
                return work()
            except GradientOverflow:
                if self._power <= LEAST:
                    raise RunFailed(
                        "gradients are not finite in float16, though the loss is",
                        hint="float16 overflows easily; try --dtype float32 or bfloat16",
                    ) from None
            self._power -= STEP
            self._say(f"a gradient overflowed in float16: scoring starts again with the loss scaled down by {2**STEP}")
