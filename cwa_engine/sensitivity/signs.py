"""Random signs for Hutchinson's trick: a sum weighted with independent signs has the sum of squares as its mean square.

They depend on the seed and the text alone, so a text has the same signs in every batch, order and source of gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence


def token_signs(sequence: TokenSequence, seed: int) -> NDArray[np.int64]:
    """+1 or -1 for each scored token. [scored tokens]"""
    return np.random.default_rng([seed, *sequence.ids]).integers(0, 2, sequence.scored_tokens) * 2 - 1


def weight_signs(parameters: Mapping[str, Tensor], sequence: TokenSequence, seed: int, probe: int) -> dict[str, Tensor]:
    """+1 or -1 for each weight, in the parameters' dtype; other probes of the same text have other signs."""
    (state,) = np.random.SeedSequence([seed, probe, *sequence.ids]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state))
    return {
        # A byte for each weight goes to the device, and is widened there.
        name: torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8)
        .to(p.device)
        .mul_(2)
        .sub_(1)
        .to(p.dtype)
        for name, p in parameters.items()
    }
