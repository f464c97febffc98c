"""The diagonal of the Hessian of the loss: estimated for all weights, exact for chosen ones.

Hutchinson's estimate is the mean over probes z, random signs for every weight, of z ∘ (H z). The signs make the off-diagonal
terms vanish on average; with one probe each entry is off by about the size of its row. H is a sum over texts, and each
text has probes of its own: what one text's are off by is then independent of what the others' are, and averages out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.evaluation.loss_scale import MeanLoss
from cwa_engine.evaluation.perplexity import sequence_nll
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import one_expert_at_a_time
from cwa_engine.sensitivity.signs import weight_signs

AfterSequence = Callable[[int], None]
Gradients = dict[str, Tensor]  # of one text's share of the loss, to be differentiated again


@dataclass(frozen=True)
class Diagonal:
    """diag H by parameter, shaped like it, float32 or better, with standard errors over probes."""

    estimate: dict[str, Tensor]
    error: dict[str, Tensor]  # empty where there is one probe, which has no spread


def hutchinson_diagonal(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    probes: int,
    seed: int,
    scale: float | None = None,
    after_sequence: AfterSequence = lambda done: None,
) -> Diagonal:
    """An estimate of diag H of the mean token NLL over `sequences`, for every parameter.

    Source: Bekas et al. 2007, eq. 2; Yao et al. 2020. Raises RunFailed where a loss is not finite, GradientOverflow where
    the loss times `scale` has second derivatives that are not.
    """
    parameters = {name: loaded.model.get_parameter(name) for name in loaded.anatomy.parameters}
    precision = torch.promote_types(loaded.model.dtype, torch.float32)
    estimate = {name: torch.zeros_like(parameter, dtype=precision) for name, parameter in parameters.items()}
    variance = {name: torch.zeros_like(total) for name, total in estimate.items()} if probes > 1 else {}
    loss = MeanLoss(sequences, scale)
    with _differentiable_twice(loaded):
        for sequence, gradients in _gradients(loaded, sequences, loss, parameters, after_sequence):
            sums: dict[str, Tensor] = {}  # of the text's samples
            for probe in range(probes):
                signs = weight_signs(parameters, sequence, seed, probe)
                for name, row in _product(gradients, parameters, signs).items():
                    sample = loss.unscaled(signs[name] * row)
                    if variance:
                        variance[name].addcmul_(sample, sample, value=1 / (probes * (probes - 1)))
                    sums[name] = sums[name].add_(sample) if name in sums else sample
            for name, total in sums.items():
                estimate[name].add_(total, alpha=1 / probes)
                if variance:
                    variance[name].addcmul_(total, total, value=-1 / (probes**2 * (probes - 1)))
    return Diagonal(estimate, {name: total.clamp_(min=0).sqrt_() for name, total in variance.items()})


def exact_diagonal(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    weights: Sequence[tuple[str, int]],
    scale: float | None = None,
    after_sequence: AfterSequence = lambda done: None,
) -> list[float]:
    """Entries of diag H of the mean token NLL for weights given as (parameter, flat index).

    Each by a product of H with the unit vector of the weight, one for each text. Raises what `hutchinson_diagonal` does.
    """
    parameters = {name: loaded.model.get_parameter(name) for name, _ in weights}
    loss = MeanLoss(sequences, scale)
    totals = [0.0] * len(weights)
    with _differentiable_twice(loaded):
        for _, gradients in _gradients(loaded, sequences, loss, parameters, after_sequence):
            for place, (name, index) in enumerate(weights):
                if name in gradients:
                    entry = gradients[name].reshape(-1)[index]
                    (row,) = torch.autograd.grad(entry, [parameters[name]], retain_graph=True, materialize_grads=True)
                    totals[place] += float(loss.unscaled(row.reshape(-1)[index]))
    return totals


@contextmanager
def _differentiable_twice(loaded: LoadedModel) -> Iterator[None]:
    """The fused kernels of attention and experts have no second derivative; their plain forms do."""
    with sdpa_kernel(SDPBackend.MATH), one_expert_at_a_time(loaded):
        yield


def _gradients(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    loss: MeanLoss,
    parameters: Mapping[str, Tensor],
    after_sequence: AfterSequence,
) -> Iterator[tuple[TokenSequence, Gradients]]:
    """Each text with its gradients; those that are no function of any weight are left out."""
    for number, (sequence,) in enumerate(batched(sequences, 1), start=1):
        share = loss.of(sequence_nll(loaded, [sequence]), (number, len(sequences)))
        wanted = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        found = torch.autograd.grad(share, list(wanted.values()), create_graph=True, allow_unused=True)
        yield sequence, {n: g for n, g in zip(wanted, found, strict=True) if g is not None and g.requires_grad}
        after_sequence(number)


def _product(gradients: Gradients, parameters: Mapping[str, Tensor], vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """H times a vector; nothing where the loss is linear in all weights."""
    if not gradients:
        return {}
    rows = torch.autograd.grad(
        list(gradients.values()),
        [parameters[name] for name in gradients],
        [vector[name] for name in gradients],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(gradients, rows, strict=True))
