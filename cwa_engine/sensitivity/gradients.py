"""Gradient sources: from texts to the accumulated statistics of every parameter.

`resident` keeps the statistics of all parameters in memory, in float32 or better whatever the weights are, and only one
parameter's fresh gradient beside them: a hook adds each gradient to its statistics as soon as autograd has it. What
linear layers read and write is recorded in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class Totals:
    """g and F of parameters, added up from their gradients of one batch after the other.

    Gradients are those of (NLL sum of the batch) / (tokens of all sequences). For F a batch is one sequence.
    """

    def __init__(self, needs: Needs, sequences: Sequence[TokenSequence]) -> None:
        self.needs = needs
        self.tokens = sum(sequence.scored_tokens for sequence in sequences)
        self.batch: Sequence[TokenSequence] = ()  # whose gradients come now
        self.sequences = len(sequences)
        self._gradient: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}

    def add(self, name: str, fresh: Tensor) -> None:
        """Take a parameter's gradient, which is ours to keep."""
        fresh = fresh.to(torch.promote_types(fresh.dtype, torch.float32))
        # A total begins with its first summand: a buffer of zeros would cost a pass over all weights.
        if Needs.FISHER in self.needs:
            # (dL_s/dw)^2 / sequences, L_s being the mean over the sequence's own tokens
            share = (self.tokens / self.batch[0].scored_tokens) ** 2 / self.sequences
            if name in self._fisher:
                self._fisher[name].addcmul_(fresh, fresh, value=share)
            else:
                self._fisher[name] = fresh.square() * share
        if Needs.GRADIENT in self.needs:
            if name in self._gradient:
                self._gradient[name].add_(fresh)
            else:
                self._gradient[name] = fresh

    def of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """The fields of `WeightStats` for a parameter; zeros for one that the loss does not depend on."""
        found = {}
        if Needs.GRADIENT in self.needs:
            found["gradient"] = self._gradient[name] if name in self._gradient else _zeros(parameter)
        if Needs.FISHER in self.needs:
            found["fisher"] = self._fisher[name] if name in self._fisher else _zeros(parameter)
        return found

    def forget(self, names: Iterable[str]) -> None:
        """Free the totals of these parameters."""
        for name in names:
            self._gradient.pop(name, None)
            self._fisher.pop(name, None)


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
    batches = batches_for(loaded, sequences, needs, batch_size)
    activations = Activations(loaded, needs) if needs.activations else None
    totals = Totals(needs, sequences)
    done = 0

    def so_far(with_factor: bool = False) -> Statistics:
        return statistics_of(parameters, totals, activations, with_factor)

    record = activations.recorded() if activations else nullcontext()
    with gradients_to(parameters, totals.add), record, torch.set_grad_enabled(needs.backward):
        for number, batch in enumerate(batches, start=1):
            totals.batch = batch
            loss = finite_loss(loaded, batch, totals.tokens, number, len(batches))
            if needs.backward:
                torch.autograd.backward(loss)
            done += len(batch)
            after_batch(done, so_far)
    return so_far(with_factor=True)


def statistics_of(
    parameters: Mapping[str, Tensor], totals: Totals, activations: Activations | None, with_factor: bool = True
) -> Statistics:
    """What is known of these parameters, gradients and activations together."""
    return {
        name: WeightStats(
            **totals.of(name, parameter),
            **(activations.fields(name, totals.sequences, with_factor) if activations else {}),
        )
        for name, parameter in parameters.items()
    }


def batches_for(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], needs: Needs, batch_size: int | None
) -> list[list[TokenSequence]]:
    """The batches of a scoring pass: F is a mean over sequences of squares, so for it each sequence goes alone."""
    return batched(sequences, 1 if needs.per_sequence else batch_size or loaded.default_batch_size)


def finite_loss(loaded: LoadedModel, batch: Sequence[TokenSequence], tokens: int, number: int, batches: int) -> Tensor:
    """(NLL sum of the batch) / `tokens`. Raises RunFailed, naming the batch, where it is not finite."""
    loss = sequence_nll(loaded, batch).sum() / tokens
    if not torch.isfinite(loss):
        raise non_finite_loss(loss, number, batches)
    return loss


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


@contextmanager
def gradients_to(parameters: dict[str, torch.nn.Parameter], take: Callable[[str, Tensor], None]) -> Iterator[None]:
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
