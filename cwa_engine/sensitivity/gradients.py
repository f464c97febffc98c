"""Gradient sources: from texts to the accumulated gradient statistics of every parameter.

`resident` keeps the statistics of all parameters in memory, in float32 whatever the weights are, and only one
parameter's fresh gradient beside them: a hook adds each gradient to its statistics as soon as autograd has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.errors import RunFailed
from cwa_engine.evaluation.perplexity import sequence_nll
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.metrics import GradientStats, Needs

Statistics = dict[str, GradientStats]
SoFar = Callable[[], Statistics]
AfterBatch = Callable[[int, SoFar], None]


def resident(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    batch_size: int | None = None,
    after_batch: AfterBatch = lambda done, so_far: None,
) -> Statistics:
    """Gradient g of the mean token NLL over all `sequences` and Fisher F, as `needs` asks, per parameter name.

    After each batch `after_batch(sequences done, so_far)` is called; `so_far()` gives what has been added up until then,
    divided by the final number of tokens and sequences. Raises RunFailed, naming the batch, where a loss is not finite.
    """
    parameters = {name: loaded.model.get_parameter(name) for name in loaded.anatomy.parameters}
    if needs is Needs.NOTHING:
        return dict.fromkeys(parameters, GradientStats())
    # F is a mean over sequences of squares, so each sequence needs a backward of its own.
    batches = batched(sequences, 1 if Needs.FISHER in needs else batch_size or loaded.default_batch_size)
    tokens = sum(sequence.scored_tokens for sequence in sequences)
    gradient: dict[str, Tensor] = {}
    fisher: dict[str, Tensor] = {}
    done = 0

    def accumulate(name: str, fresh: Tensor) -> None:
        """`fresh` is the gradient of (NLL sum of the batch) / `tokens`, and ours to keep."""
        fresh = fresh.float()
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

    def so_far() -> Statistics:
        return {
            name: GradientStats(
                _total(gradient, name, parameter) if Needs.GRADIENT in needs else None,
                _total(fisher, name, parameter) if Needs.FISHER in needs else None,
            )
            for name, parameter in parameters.items()
        }

    with _gradients_to(parameters, accumulate):
        for number, batch in enumerate(batches, start=1):
            loss = sequence_nll(loaded, batch).sum() / tokens
            if not torch.isfinite(loss):
                raise RunFailed(
                    f"the loss of scoring batch {number} of {len(batches)} is {loss.item()}",
                    hint="float16 overflows easily; try --dtype float32, and look at that batch's texts",
                )
            torch.autograd.backward(loss)
            done += len(batch)
            after_batch(done, so_far)
    return so_far()


def _total(totals: dict[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """What was added up for a parameter; zeros for one that the loss does not depend on."""
    return totals[name] if name in totals else torch.zeros_like(parameter, dtype=torch.float32)


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
        handles.append(parameter.register_post_accumulate_grad_hook(hook_for(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters.values():
            parameter.grad = None
