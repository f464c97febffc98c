"""Gradients: from texts to the accumulated statistics of every parameter.

`resident` keeps the statistics of all parameters in memory, in float32 or better whatever the weights are, and only one
parameter's fresh gradient beside them: a hook adds each gradient to its statistics as soon as autograd has it. What
linear layers read and write is recorded in the same pass. `sweep` is the other source.

Where the blocks of a model form a chain, backward comes in three parts: the tail gives the gradient at what the last block
gave, some tokens' logits at a time; the blocks pass it on; what comes before them gets the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.loss_scale import MeanLoss, Where
from cwa_engine.evaluation.perplexity import PaddedBatch, padded, pieces, tail_nll
from cwa_engine.methods.metrics import Needs, WeightStats
from cwa_engine.models.chain import BlockTrace, Chain, NotAChain, ResumePoint, chain_of
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.by_sequence import NotSeparable, check_separable, gradients_by_sequence
from cwa_engine.sensitivity.totals import Totals, totals_of

Statistics = dict[str, WeightStats]
SoFar = Callable[[], Statistics]
AfterBatch = Callable[[int, SoFar], None]
Batch = Sequence[TokenSequence]


def resident(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    batch_size: int | None = None,
    after_batch: AfterBatch = lambda done, so_far: None,
    seed: int = 0,
    scale: float | None = None,
) -> Statistics:
    """Gradient g of the mean token NLL over all `sequences`, Fisher diagonals and activations, as `needs` asks.

    `seed` is that of the random signs, `scale` the factor of the loss, see `totals` and `loss_scale`.
    After each batch `after_batch(sequences done, so_far)` is called; `so_far()` gives what has been added up until then,
    divided by the final number of tokens and sequences, without what is slow to make (d of `obs`). Raises RunFailed,
    naming the batch, where a loss is not finite; GradientOverflow where a scaled loss has a gradient that is not.
    """
    parameters = {name: loaded.model.get_parameter(name) for name in loaded.anatomy.parameters}
    if not (needs.backward or needs.activations):
        return dict.fromkeys(parameters, WeightStats())
    batches = batches_for(loaded, sequences, needs, batch_size)
    activations = Activations(loaded, needs, sequences) if needs.activations else None
    losses = totals_of(needs, sequences, seed, scale)
    chain = _chain_for(loaded, batches, needs)
    outsides = [OutsideGradients(loaded, chain, totals) for totals in losses] if chain else []
    done = 0

    def so_far(with_factor: bool = False) -> Statistics:
        return statistics_of(parameters, losses, activations, len(sequences), with_factor)

    record = activations.recorded() if activations else nullcontext()
    with record, torch.set_grad_enabled(needs.backward):
        for number, batch in enumerate(batches, start=1):
            where = number, len(batches)
            if activations:
                activations.reading(batch[0])
            if not chain:
                _backward_at_once(loaded, losses, parameters, batch, where)
            for outside in outsides:
                _backward_in_parts(loaded, outside, batch, where)
            done += len(batch)
            after_batch(done, so_far)
    return so_far(with_factor=True)


def _backward_at_once(
    loaded: LoadedModel, losses: Sequence[Totals], parameters: dict[str, nn.Parameter], batch: Batch, where: Where
) -> None:
    """Forward once, and backward from each loss."""
    texts = padded(loaded, batch)
    logits = logits_of(loaded.model, texts.ids, texts.attention_mask)
    if not losses:  # activations were recorded; those of a model that has no loss say nothing
        MeanLoss(batch).of(texts.nll(logits), where)
    starts = [totals.loss.of(totals.prepared(texts, batch).nll(logits), where) for totals in losses]
    del logits
    for totals, start in zip(losses, starts, strict=True):
        with gradients_to(totals, parameters, batch):
            torch.autograd.backward(start, retain_graph=totals is not losses[-1])


def _backward_in_parts(loaded: LoadedModel, outside: OutsideGradients, batch: Batch, where: Where) -> None:
    chain, totals = outside.chain, outside.totals
    texts = totals.prepared(padded(loaded, batch), batch)
    with torch.no_grad():
        embedded = chain.first_input(texts.ids, texts.attention_mask)
    inside = {n: loaded.model.get_parameter(n) for n, p in loaded.anatomy.parameters.items() if p.layer is not None}
    with block_gradients(loaded, inside, totals, batch) as plain:
        start = ResumePoint(0, embedded.requires_grad_())
        trace = chain.run_blocks(texts.ids, texts.attention_mask, start, keep=lambda index: False)
        gradient = outside.tail(texts, trace, batch, where)
        torch.autograd.backward(trace.last_hidden, gradient, inputs=[embedded, *plain])
    assert embedded.grad is not None
    outside.embedding(texts, batch, embedded.grad)


class OutsideGradients:
    """The gradients of one loss by the parameters outside the blocks: those before the first and those after the last."""

    def __init__(self, loaded: LoadedModel, chain: Chain, totals: Totals) -> None:
        self.chain, self.totals, self._loaded = chain, totals, loaded
        parameters = {n: loaded.model.get_parameter(n) for n, p in loaded.anatomy.parameters.items() if p.layer is None}
        outside = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self._before = {name: parameter for name, parameter in outside.items() if name in chain.before}
        self._after = {name: parameter for name, parameter in outside.items() if name in chain.after}
        # Of a tied embedding both parts of a sequence's gradient are needed before they are squared. Its first part is
        # for the sequence's own tokens alone: those rows of the other part are kept until then.
        both = (name for name in self._before if name in self._after) if totals.needs.squares else ()
        self._kept: dict[str, deque[Tensor]] = {name: deque() for name in both}  # of the sequences in order

    def tail(self, texts: PaddedBatch, trace: BlockTrace, batch: Batch, where: Where) -> Tensor:
        """The gradient of the loss by what the last block gave; that of the tail's parameters goes to the totals."""
        hidden = trace.last_hidden.detach()
        gradients = []
        for part, sequences in self._parts(texts, batch):
            leaf, some = hidden[part].requires_grad_(), texts.part(part)
            with _left_without_gradients(self._after):
                self._through_tail(some, leaf, trace, where)
                for name, parameter in self._after.items():
                    if parameter.grad is None:
                        continue
                    if name in self._kept:
                        self._kept[name].append(parameter.grad[_rows(sequences[0], parameter)])
                    self.totals.add(name, parameter.grad, sequences)
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        return torch.cat(gradients)

    def embedding(self, texts: PaddedBatch, batch: Batch, gradient: Tensor) -> None:
        """From the gradient at the first block's input to the parameters that it was computed by."""
        if not self._before:
            return
        for part, sequences in self._parts(texts, batch):
            some = texts.part(part)
            with torch.enable_grad():
                hidden = self.chain.first_input(some.ids, some.mask if len(batch) > 1 else None)
            with _left_without_gradients(self._before):
                if hidden.requires_grad:
                    torch.autograd.backward(hidden, gradient[part], inputs=list(self._before.values()))
                for name, parameter in self._before.items():
                    if parameter.grad is None:
                        continue
                    if name in self._kept:
                        rows = _rows(sequences[0], parameter)
                        first, second = self._kept[name].popleft(), parameter.grad[rows]
                        self.totals.join(name, rows, first, second, sequences[0])
                    else:
                        self.totals.add(name, parameter.grad, sequences)

    def _parts(self, texts: PaddedBatch, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        """The whole batch, or where gradients are squared one sequence after the other."""
        if not self.totals.needs.squares or len(batch) == 1:
            yield slice(None), batch
            return
        for row, sequence in enumerate(batch):
            yield slice(row, row + 1), [sequence]

    def _through_tail(self, texts: PaddedBatch, hidden: Tensor, trace: BlockTrace, where: Where) -> None:
        """Forward and backward, the logits of some tokens at a time; gradients are left in `.grad`."""
        wanted = [hidden, *self._after.values()]
        with torch.enable_grad():
            for nll_sums in tail_nll(self._loaded, self.chain, self.chain.tail(trace, hidden), texts):
                torch.autograd.backward(self.totals.loss.of(nll_sums, where), inputs=wanted)


@contextmanager
def _left_without_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Free the gradients in the end, however it comes: what is begun anew must not add to them."""
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _rows(sequence: TokenSequence, embedding: Tensor) -> Tensor:
    """The rows of the embedding that a sequence looks up."""
    return torch.tensor(sorted(set(sequence.ids)), device=embedding.device)


@contextmanager
def block_gradients(
    loaded: LoadedModel, parameters: dict[str, nn.Parameter], totals: Totals, batch: Batch
) -> Iterator[list[nn.Parameter]]:
    """Take the gradients of weights in blocks as backward makes them; gives those that backward is to be told of."""
    if totals.needs.squares and len(batch) > 1:

        def take(name: str, start: int, rows: Tensor) -> None:
            totals.add_rows(parameters[name], name, start, rows, batch)

        with gradients_by_sequence(loaded.model, parameters, len(batch), take):
            yield []
    else:
        with gradients_to(totals, parameters, batch):
            yield [parameter for parameter in parameters.values() if parameter.requires_grad]


def statistics_of(
    parameters: Mapping[str, Tensor],
    losses: Sequence[Totals],
    activations: Activations | None,
    sequences: int,
    with_factor: bool = True,
) -> Statistics:
    """What is known of these parameters from so many sequences, gradients and activations together."""
    found = {}
    for name, parameter in parameters.items():
        fields = activations.fields(name, sequences, with_factor) if activations else {}
        for totals in losses:
            fields |= totals.of(name, parameter)
        found[name] = WeightStats(**fields, sequences=sequences)
    return found


def batches_for(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], needs: Needs, batch_size: int | None
) -> list[list[TokenSequence]]:
    """The batches of a scoring pass.

    Activations are recorded of one text at a time. Gradients of sequences are squared before they are added: where those
    of a batch cannot be told apart, each sequence goes alone.
    """
    size = batch_size or loaded.default_batch_size
    if needs.activations or (size > 1 and needs.squares and not is_separable(loaded)):
        size = 1
    return loaded.batched(sequences, size)


def is_separable(loaded: LoadedModel) -> bool:
    """Whether the gradients of a batch's sequences by the parameters in view can be told apart; found out once."""

    def find() -> bool:
        try:
            check_separable(loaded)
        except (NotAChain, NotSeparable):
            return False
        return True

    return loaded.facts.once(("separable", tuple(loaded.anatomy.parameters)), find)


def _chain_for(loaded: LoadedModel, batches: Sequence[Batch], needs: Needs) -> Chain | None:
    """The chain to go back through in parts, where that is of use: for squares of batches, or where there are many logits."""
    by_sequence = needs.squares and len(batches[0]) > 1
    if needs.activations or not (by_sequence or len(pieces(loaded, padded(loaded, batches[0]))) > 1):
        return None
    try:
        return chain_of(loaded)
    except NotAChain:
        return None


@contextmanager
def gradients_to(totals: Totals, parameters: dict[str, nn.Parameter], batch: Batch) -> Iterator[None]:
    """Add each parameter's gradient to the totals when backward has finished it, and free it at once."""

    def hook_for(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            totals.add(name, parameter.grad, batch)
            parameter.grad = None

        return hook

    handles: list[Any] = []
    for name, parameter in parameters.items():
        if not parameter.requires_grad:  # some models freeze a few, which the loss is not differentiated by
            continue
        handles.append(parameter.register_post_accumulate_grad_hook(hook_for(name)))  # type: ignore[no-untyped-call]
    try:
        with _left_without_gradients(parameters):
            yield
    finally:
        for handle in handles:
            handle.remove()
