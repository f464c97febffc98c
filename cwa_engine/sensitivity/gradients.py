"""Gradients: from texts to the accumulated statistics of every parameter.

`resident` keeps the statistics of all parameters in memory, in float32 or better whatever the weights are, and only one
parameter's fresh gradient beside them: a hook adds each gradient to its statistics as soon as autograd has it. What
linear layers read and write is recorded in the same pass. `sweep` is the other source.

Where the blocks of a model form a chain, backward comes in three parts: the tail gives the gradient at what the last block
gave, some tokens' logits at a time; the blocks pass it on; what comes before them gets the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import Padded, non_finite_loss, padded, pieces, sequence_nll, tail_nll
from cwa_engine.models.chain import Begin, Chain, NotAChain, Stations, chain_of, has_no_values
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.by_sequence import NotSeparable, check_separable, gradients_by_sequence
from cwa_engine.sensitivity.metrics import Needs, WeightStats

Statistics = dict[str, WeightStats]
SoFar = Callable[[], Statistics]
AfterBatch = Callable[[int, SoFar], None]
Batch = Sequence[TokenSequence]
Where = tuple[int, int]  # number of a batch from 1 on, and how many there are


class Totals:
    """g and F of parameters, added up from their gradients of one batch after the other.

    Gradients are those of (NLL sum) / (tokens of all sequences): of a batch, or for F of one sequence.
    """

    def __init__(self, needs: Needs, sequences: Sequence[TokenSequence]) -> None:
        self.needs = needs
        self.tokens = sum(sequence.scored_tokens for sequence in sequences)
        self.sequences = len(sequences)
        self._gradient: dict[str, Tensor] = {}
        self._fisher: dict[str, Tensor] = {}

    def _share(self, sequence: TokenSequence) -> float:
        """What makes of a squared gradient (dL_s/dw)^2 / sequences, L_s being the mean over the sequence's own tokens."""
        return (self.tokens / sequence.scored_tokens) ** 2 / self.sequences

    def add(self, name: str, fresh: Tensor, batch: Sequence[TokenSequence]) -> None:
        """Take a parameter's gradient of a batch, which for F is one sequence. The tensor is ours to keep."""
        fresh = _precise(fresh)
        # A total begins with its first summand: a buffer of zeros would cost a pass over all weights.
        if Needs.FISHER in self.needs:
            (sequence,) = batch
            if name in self._fisher:
                self._fisher[name].addcmul_(fresh, fresh, value=self._share(sequence))
            else:
                self._fisher[name] = fresh.square() * self._share(sequence)
        if Needs.GRADIENT in self.needs:
            if name in self._gradient:
                self._gradient[name].add_(fresh)
            else:
                self._gradient[name] = fresh

    def add_rows(self, parameter: Tensor, name: str, start: int, rows: Tensor, batch: Sequence[TokenSequence]) -> None:
        """Take the gradients of every sequence of a batch, [B, rows, ...], of some rows of a parameter's first axis."""
        fresh = _precise(rows).flatten(1)  # [B, weights]
        if Needs.GRADIENT in self.needs:
            if name not in self._gradient:
                self._gradient[name] = _zeros(parameter)
            self._gradient[name][start : start + rows.shape[1]].view(-1).add_(fresh.sum(0))
        if name not in self._fisher:
            self._fisher[name] = _zeros(parameter)
        shares = fresh.new_tensor([self._share(sequence) for sequence in batch])
        self._fisher[name][start : start + rows.shape[1]].view(-1).addmv_(fresh.square_().T, shares)

    def join(self, name: str, rows: Tensor, first: Tensor, second: Tensor, sequence: TokenSequence) -> None:
        """Take the second part of a sequence's gradient in some rows, where its `first` has been added already."""
        first, second = _precise(first), _precise(second)
        if Needs.FISHER in self.needs:  # (first + second)^2 - first^2
            self._fisher[name].index_add_(0, rows, second * (2 * first + second), alpha=self._share(sequence))
        if Needs.GRADIENT in self.needs:
            self._gradient[name].index_add_(0, rows, second)

    def of(self, name: str, parameter: Tensor) -> dict[str, Any]:
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
    activations = Activations(loaded, needs, sequences) if needs.activations else None
    totals = Totals(needs, sequences)
    chain = _chain_for(loaded, batches, needs)
    ends = Ends(loaded, chain, totals) if chain else None
    done = 0

    def so_far(with_factor: bool = False) -> Statistics:
        return statistics_of(parameters, totals, activations, with_factor)

    record = activations.recorded() if activations else nullcontext()
    with record, torch.set_grad_enabled(needs.backward):
        for number, batch in enumerate(batches, start=1):
            where = number, len(batches)
            if activations:
                activations.reading(batch[0])
            if chain and ends:
                _backward_in_parts(loaded, chain, ends, totals, batch, where)
            else:
                _backward_at_once(loaded, totals, parameters, batch, where)
            done += len(batch)
            after_batch(done, so_far)
    return so_far(with_factor=True)


def _backward_at_once(
    loaded: LoadedModel, totals: Totals, parameters: dict[str, nn.Parameter], batch: Batch, where: Where
) -> None:
    with gradients_to(parameters, lambda name, fresh: totals.add(name, fresh, batch)):
        loss = finite_loss(sequence_nll(loaded, batch), totals.tokens, where)
        if totals.needs.backward:
            torch.autograd.backward(loss)


def _backward_in_parts(
    loaded: LoadedModel, chain: Chain, ends: Ends, totals: Totals, batch: Batch, where: Where
) -> None:
    texts = padded(loaded, batch)
    with torch.no_grad():
        start = chain.embedded(texts.ids, texts.attention_mask)
    inside = {n: loaded.model.get_parameter(n) for n, p in loaded.anatomy.parameters.items() if p.layer is not None}
    with block_gradients(loaded, inside, totals, batch) as plain:
        begin = Begin(0, start.requires_grad_())
        stations = chain.through(texts.ids, texts.attention_mask, begin, keep=lambda index: False)
        gradient = ends.tail(texts, stations, batch, where)
        torch.autograd.backward(stations.last_hidden, gradient, inputs=[start, *plain])
    assert start.grad is not None
    ends.embedding(texts, batch, start.grad)


class Ends:
    """The gradients of what is outside the blocks."""

    def __init__(self, loaded: LoadedModel, chain: Chain, totals: Totals) -> None:
        self._loaded, self._chain, self._totals = loaded, chain, totals
        parameters = {n: loaded.model.get_parameter(n) for n, p in loaded.anatomy.parameters.items() if p.layer is None}
        outside = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self._before = {name: parameter for name, parameter in outside.items() if name in chain.before}
        self._after = {name: parameter for name, parameter in outside.items() if name in chain.after}
        # Of a tied embedding F needs both parts of a sequence's gradient before they are squared. Its first part is for
        # the sequence's own tokens alone: those rows of the other part are kept until then.
        both = (name for name in self._before if name in self._after) if Needs.FISHER in totals.needs else ()
        self._kept: dict[str, deque[Tensor]] = {name: deque() for name in both}  # of the sequences in order

    def tail(self, texts: Padded, stations: Stations, batch: Batch, where: Where) -> Tensor:
        """The gradient of the loss by what the last block gave; that of the tail's parameters goes to the totals."""
        hidden = stations.last_hidden.detach()
        gradients = []
        for part, sequences in self._parts(texts, batch):
            leaf, some = hidden[part].requires_grad_(), texts.part(part)
            self._through_tail(some, leaf, stations, where)
            for name, parameter in self._after.items():
                if parameter.grad is None:
                    continue
                if name in self._kept:
                    self._kept[name].append(parameter.grad[_rows(sequences[0], parameter)])
                self._totals.add(name, parameter.grad, sequences)
                parameter.grad = None
            assert leaf.grad is not None
            gradients.append(leaf.grad)
        return torch.cat(gradients)

    def embedding(self, texts: Padded, batch: Batch, gradient: Tensor) -> None:
        """From the gradient at the first block's input to the parameters that it was computed by."""
        if not self._before:
            return
        for part, sequences in self._parts(texts, batch):
            some = texts.part(part)
            with torch.enable_grad():
                hidden = self._chain.embedded(some.ids, some.mask if len(batch) > 1 else None)
            if hidden.requires_grad:
                torch.autograd.backward(hidden, gradient[part], inputs=list(self._before.values()))
            for name, parameter in self._before.items():
                if parameter.grad is None:
                    continue
                if name in self._kept:
                    rows = _rows(sequences[0], parameter)
                    first, second = self._kept[name].popleft(), parameter.grad[rows]
                    self._totals.join(name, rows, first, second, sequences[0])
                else:
                    self._totals.add(name, parameter.grad, sequences)
                parameter.grad = None

    def _parts(self, texts: Padded, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        """The whole batch, or for F one sequence after the other."""
        if Needs.FISHER not in self._totals.needs or len(batch) == 1:
            yield slice(None), batch
            return
        for row, sequence in enumerate(batch):
            yield slice(row, row + 1), [sequence]

    def _through_tail(self, texts: Padded, hidden: Tensor, stations: Stations, where: Where) -> None:
        """Forward and backward, the logits of some tokens at a time; gradients are left in `.grad`."""
        wanted = [hidden, *self._after.values()]
        with torch.enable_grad():
            for nll_sums in tail_nll(self._loaded, self._chain, self._chain.tail(stations, hidden), texts):
                torch.autograd.backward(finite_loss(nll_sums, self._totals.tokens, where), inputs=wanted)


def _rows(sequence: TokenSequence, embedding: Tensor) -> Tensor:
    """The rows of the embedding that a sequence looks up."""
    return torch.tensor(sorted(set(sequence.ids)), device=embedding.device)


@contextmanager
def block_gradients(
    loaded: LoadedModel, parameters: dict[str, nn.Parameter], totals: Totals, batch: Batch
) -> Iterator[list[nn.Parameter]]:
    """Take the gradients of weights in blocks as backward makes them; gives those that backward is to be told of."""
    if Needs.FISHER in totals.needs and len(batch) > 1:

        def take(name: str, start: int, rows: Tensor) -> None:
            totals.add_rows(parameters[name], name, start, rows, batch)

        with gradients_by_sequence(loaded.model, parameters, len(batch), take):
            yield []
    else:
        with gradients_to(parameters, lambda name, fresh: totals.add(name, fresh, batch)):
            yield [parameter for parameter in parameters.values() if parameter.requires_grad]


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
    """The batches of a scoring pass.

    Activations are recorded of one text at a time. F is a mean over sequences of squares: where the gradients of a
    batch's sequences cannot be told apart, each sequence goes alone.
    """
    size = batch_size or loaded.default_batch_size
    if needs.activations or (size > 1 and Needs.FISHER in needs and not is_separable(loaded)):
        size = 1
    return loaded.batched(sequences, size)


def is_separable(loaded: LoadedModel) -> bool:
    """Whether the gradients of a batch's sequences by the parameters in view can be told apart; found out once."""
    question = "separable", tuple(loaded.anatomy.parameters)
    if question not in loaded.memo:
        try:
            check_separable(loaded)
            loaded.memo[question] = True
        except (NotAChain, NotSeparable):
            loaded.memo[question] = False
    return bool(loaded.memo[question])


def _chain_for(loaded: LoadedModel, batches: Sequence[Batch], needs: Needs) -> Chain | None:
    """The chain to go back through in parts, where that is of use: for F of batches, or where there are many logits."""
    by_sequence = Needs.FISHER in needs and len(batches[0]) > 1
    if needs.activations or not (by_sequence or len(pieces(loaded, padded(loaded, batches[0]))) > 1):
        return None
    try:
        return chain_of(loaded)
    except NotAChain:
        return None


def finite_loss(nll_sums: Tensor, tokens: int, where: Where) -> Tensor:
    """(NLL sum of the batch) / tokens. Raises RunFailed, naming the batch by `where`, where it is not finite."""
    loss = nll_sums.sum() / tokens
    if not has_no_values(loss) and not torch.isfinite(loss):
        raise non_finite_loss(loss, *where)
    return loss


def _precise(tensor: Tensor) -> Tensor:
    """In float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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
