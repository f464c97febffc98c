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
AfterBatch = Callable[[int, "Callable[[], Statistics]"], None]


def resident(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    batch_size: int | None = None,
    after_batch: AfterBatch = lambda done, statistics: None,
) -> Statistics:
    """Gradient g of the mean token NLL over all `sequences`, and F where `needs` asks for it, per parameter name.

    After each batch `after_batch(sequences done, so_far)` is called; `so_far()` gives the statistics of the texts seen
    until then. Raises RunFailed, naming the batch, where a loss is not finite.
    """
    if needs is Needs.NOTHING:
        return dict.fromkeys(loaded.anatomy.parameters, GradientStats())
    parameters = {name: loaded.model.get_parameter(name) for name in loaded.anatomy.parameters}
    gradient = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    fisher = {name: torch.zeros_like(total) for name, total in gradient.items()} if needs is Needs.FISHER else None
    # Fisher is a mean over sequences of squares, so each sequence needs a backward of its own.
    batches = batched(sequences, 1 if fisher is not None else batch_size or loaded.default_batch_size)
    tokens = done = 0

    def accumulate(name: str, fresh: Tensor) -> None:
        gradient[name].add_(fresh)
        if fisher is not None:
            scaled = fresh.float() / scored
            fisher[name].addcmul_(scaled, scaled)

    def so_far() -> Statistics:
        return {
            name: GradientStats(gradient[name] / tokens, None if fisher is None else fisher[name] / done)
            for name in gradient
        }

    with _gradients_to(parameters, accumulate):
        for number, batch in enumerate(batches, start=1):
            nll = sequence_nll(loaded, batch).sum()
            if not torch.isfinite(nll):
                raise RunFailed(
                    f"the loss of scoring batch {number} of {len(batches)} is {nll.item()}",
                    hint="float16 overflows easily; try --dtype float32, and look at that batch's texts",
                )
            scored = sum(sequence.scored_tokens for sequence in batch)
            torch.autograd.backward(nll)
            tokens += scored
            done += len(batch)
            after_batch(done, so_far)

    for total in gradient.values():  # in place: a second copy of every gradient would double the memory
        total.div_(tokens)
    for total in (fisher or {}).values():
        total.div_(done)
    return {name: GradientStats(gradient[name], None if fisher is None else fisher[name]) for name in gradient}


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
