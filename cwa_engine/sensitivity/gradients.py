"""Gradient sources: from texts to the accumulated statistics of every parameter.

`resident` keeps the statistics of all parameters in memory, in float32 or better whatever the weights are, and only one
parameter's fresh gradient beside them: a hook adds each gradient to its statistics as soon as autograd has it. What
linear layers read and write is recorded in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.evaluation.perplexity import non_finite_loss, sequence_nll
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.metrics import Needs, WeightStats

Statistics = dict[str, WeightStats]
SoFar = Callable[[], Statistics]
AfterBatch = Callable[[int, SoFar], None]


def resident(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    batch_size: int | None = None,
    after_batch: AfterBatch = lambda done, so_far: None,
) -> Statistics:
    """Gradient g of the mean token NLL over all `sequences`, Fisher F and activations, as `needs` asks, by parameter.

    After each batch `after_batch(sequences done, so_far)` is called; `so_far()` gives what has been added up until then,
    divided by the final number of tokens and sequences, without what is slow to make (d of `obs`). Raises RunFailed,
    naming the batch, where a loss is not finite.
    """
    parameters = {name: loaded.model.get_parameter(name) for name in loaded.anatomy.parameters}
    if not (needs.backward or needs.activations):
        return dict.fromkeys(parameters, WeightStats())
    # F is a mean over sequences of squares, so each sequence needs a backward of its own.
    batches = batched(sequences, 1 if needs.per_sequence else batch_size or loaded.default_batch_size)
    activations = Activations(loaded, needs) if needs.activations else None
    tokens = sum(sequence.scored_tokens for sequence in sequences)
    gradient: dict[str, Tensor] = {}
    fisher: dict[str, Tensor] = {}
    done = 0

    def accumulate(name: str, fresh: Tensor) -> None:
        """`fresh` is the gradient of (NLL sum of the batch) / `tokens`, and ours to keep."""
        fresh = fresh.to(torch.promote_types(fresh.dtype, torch.float32))
        # A total begins with its first summand: a buffer of zeros would cost a pass over all weights.
        if Needs.FISHER in needs:
            # (dL_s/dw)^2 / sequences, L_s being the mean over the sequence's own tokens
            share = (tokens / batch[0].scored_tokens) ** 2 / len(sequences)
            if name in fisher:
                fisher[name].addcmul_(fresh, fresh, value=share)
            else:
                fisher[name] = fresh.square() * share
        if Needs.GRADIENT in needs:
            if name in gradient:
                gradient[name].add_(fresh)
            else:
                gradient[name] = fresh

    def so_far(with_factor: bool = False) -> Statistics:
        return {
            name: WeightStats(
                gradient=_total(gradient, name, parameter) if Needs.GRADIENT in needs else None,
                fisher=_total(fisher, name, parameter) if Needs.FISHER in needs else None,
                **(activations.fields(name, len(sequences), with_factor) if activations else {}),
            )
            for name, parameter in parameters.items()
        }

    record = activations.recorded() if activations else nullcontext()
    with _gradients_to(parameters, accumulate), record, torch.set_grad_enabled(needs.backward):
        for number, batch in enumerate(batches, start=1):
            loss = sequence_nll(loaded, batch).sum() / tokens
            if not torch.isfinite(loss):
                raise non_finite_loss(loss, number, len(batches))
            if needs.backward:
                torch.autograd.backward(loss)
            done += len(batch)
            after_batch(done, so_far)
    return so_far(with_factor=True)


def _total(totals: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """What was added up for a parameter; zeros for one that the loss does not depend on."""
    if name in totals:
        return totals[name]
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


@contextmanager
def _gradients_to(parameters: dict[str, torch.nn.Parameter], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand each parameter's gradient to `take` when backward has finished it, and free it at once."""

    def hook_for(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            take(name, parameter.grad)
            parameter.grad = None

        return hook

    handles: list[Any] = []
    for name, parameter in parameters.items():
        if not parameter.requires_grad:  # some models freeze a few, which the loss is not differentiated by
            continue
        handles.append(parameter.register_post_accumulate_grad_hook(hook_for(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.grad = None
