"""The diagonal of the Hessian of the loss by Hutchinson's estimator: the mean over probes z of z ∘ (H z).

The signs in z make the off-diagonal terms vanish on average; with one probe each entry is off by the size of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.evaluation.perplexity import sequence_nll
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import one_expert_at_a_time
from cwa_engine.sensitivity.gradients import finite_loss


def hutchinson_diagonal(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    probes: int,
    seed: int,
    after_sequence: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    """diag H of the mean token NLL over `sequences` for every parameter, shaped like it, float32 or better.

    The same probes meet every sequence. Source: Bekas et al. 2007, eq. 2; Yao et al. 2020.
    """
    everything = {name: loaded.model.get_parameter(name) for name in loaded.anatomy.parameters}
    parameters = {name: p for name, p in everything.items() if p.requires_grad}
    tokens = sum(sequence.scored_tokens for sequence in sequences)
    precision = torch.promote_types(loaded.model.dtype, torch.float32)
    diagonal = {name: torch.zeros_like(p, dtype=precision) for name, p in everything.items()}
    # The fused kernels of attention and experts have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), one_expert_at_a_time(loaded):
        for done, batch in enumerate(batched(sequences, 1), start=1):
            loss = finite_loss(sequence_nll(loaded, batch), tokens, (done, len(sequences)))
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            for probe in range(probes):
                signs = rademacher(parameters, seed, probe)
                product = torch.autograd.grad(
                    [gradient for gradient in gradients if gradient.requires_grad],
                    list(parameters.values()),
                    [sign for sign, gradient in zip(signs, gradients, strict=True) if gradient.requires_grad],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for name, sign, row in zip(parameters, signs, product, strict=True):
                    diagonal[name].add_(sign * row, alpha=1 / probes)
            after_sequence(done)
    return diagonal


def rademacher(parameters: dict[str, torch.nn.Parameter], seed: int, probe: int) -> list[Tensor]:
    """Signs +1 and -1 for every weight, the same whenever they are drawn for this seed and probe."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + probe)
    return [
        (torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8) * 2 - 1).to(p.device, p.dtype)
        for p in parameters.values()
    ]
