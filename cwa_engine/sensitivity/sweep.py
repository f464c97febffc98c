"""Exact gradients with those of one decoder block alive at a time.

1. Each batch runs forward once without autograd, and what every block was called with is kept.
2. From the last block's output the model's own final norm and head give the loss and its gradient at that output.
3. From the last block down, each block is computed again with autograd from its kept input, and differentiated from the
   gradient of its output; after the last batch its statistics are given away and freed.
4. What comes before the first block is differentiated from the gradient of that block's input. A parameter that is used
   on both sides of the blocks, as a tied embedding is, has both parts; for F they are added before they are squared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import sequence_nll
from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.activations import Activations
from cwa_engine.sensitivity.gradients import (
    Statistics,
    Totals,
    batches_for,
    finite_loss,
    gradients_to,
    statistics_of,
)
from cwa_engine.sensitivity.metrics import Needs

AfterBlock = Callable[[int, int], None]


class NotSweepable(Exception):
    """Why the blocks of a model cannot be differentiated one by one."""


@dataclass(frozen=True)
class _Call:
    """What a block was called with. The hidden state is the first argument, by place or by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        found = self.args[0] if self.args else self.kwargs.get("hidden_states")
        if not isinstance(found, Tensor):
            raise NotSweepable("a block is not called with a hidden state")
        return found

    def with_hidden(self, hidden: Tensor) -> _Call:
        if self.args:
            return _Call((hidden, *self.args[1:]), self.kwargs)
        return _Call((), {**self.kwargs, "hidden_states": hidden})


@dataclass
class _Pass:
    """One batch on its way: a call for each block, the last output, and the gradient that has come down so far."""

    batch: Sequence[TokenSequence]
    calls: list[_Call] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)  # as the blocks gave them; only their last is kept
    gradient: Tensor | None = None


class _LastBlockDone(Exception):
    """Ends a forward pass whose head is not needed."""


class _FirstBlockReached(Exception):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def sweep(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    needs: Needs,
    batch_size: int | None = None,
    after_block: AfterBlock = lambda done, total: None,
) -> Iterator[Statistics]:
    """The statistics that `resident` gives, those of one block after the other, from the last block to what is outside.

    Raises NotSweepable before anything is given away where the model's blocks do not each take and give one hidden state;
    RunFailed where a loss is not finite.
    """
    check_sweepable(loaded, sequences)
    blocks = _blocks(loaded)
    activations = Activations(loaded, needs) if needs.activations else None
    totals = Totals(needs, sequences)
    passes = []
    record = activations.recorded() if activations else nullcontext()
    with record, torch.no_grad():
        for batch in batches_for(loaded, sequences, needs, batch_size):
            passes.append(_forward(loaded, blocks, batch, through_head=activations is not None))

    def statistics(names: Sequence[str]) -> Statistics:
        found = statistics_of({name: loaded.model.get_parameter(name) for name in names}, totals, activations)
        totals.forget(names)
        return found

    steps = len(blocks) + 2
    by_block = _names_by_block(loaded)
    outside = _parameters(loaded, by_block.get(None, []))
    # Of a parameter on both sides F needs both parts at once: its head side is done again together with the other.
    twice = _on_both_sides(loaded, blocks, outside, passes[0]) if Needs.FISHER in needs else {}
    late = {name: parameter for name, parameter in outside.items() if name not in twice}
    with gradients_to(late, totals.add):
        for number, one in enumerate(passes, start=1):
            totals.batch = one.batch
            leaf = _leaf(one.outputs[-1])
            loss = _loss_from(loaded, blocks, one, leaf, totals.tokens, (number, len(passes)))
            torch.autograd.backward(loss, inputs=[leaf, *late.values()])
            one.gradient = leaf.grad
    after_block(1, steps)
    for index in reversed(range(len(blocks))):
        inside = _parameters(loaded, by_block.get(index, []))
        with gradients_to(inside, totals.add):
            for one in passes:
                totals.batch = one.batch
                one.gradient = _through_block(blocks[index], one.calls[index], one.gradient, list(inside.values()))
                if index:
                    one.calls.pop()
        yield statistics(by_block.get(index, []))
        after_block(1 + len(blocks) - index, steps)
    for number, one in enumerate(passes, start=1):
        totals.batch = one.batch
        hidden = _embedded(loaded, blocks, one.batch)
        if hidden.requires_grad:
            torch.autograd.backward(hidden, one.gradient, inputs=list(outside.values()))
        if twice:
            loss = _loss_from(loaded, blocks, one, _leaf(one.outputs[-1]), totals.tokens, (number, len(passes)))
            torch.autograd.backward(loss, inputs=list(twice.values()))
        for name, parameter in outside.items():
            if parameter.grad is not None:
                totals.add(name, parameter.grad)
            parameter.grad = None
    after_block(steps, steps)
    yield statistics(by_block.get(None, []))


def check_sweepable(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> None:
    """Raises NotSweepable unless the blocks are called once each, in order, and pass on one hidden state and nothing else
    that depends on weights; the shortest text is run through the model to see."""
    if not loaded.anatomy.blocks:
        raise NotSweepable("it has no list of decoder blocks")
    blocks = _blocks(loaded)
    owners = [id(parameter) for block in blocks for parameter in block.parameters()]
    if len(owners) != len(set(owners)):
        raise NotSweepable("blocks share weights")
    seen: list[tuple[_Call, Any]] = []
    with _watched(blocks, lambda index, call, output: seen.append((call, output))):
        sequence_nll(loaded, [min(sequences, key=lambda sequence: len(sequence.ids))])
    if len(seen) != len(blocks):
        raise NotSweepable(f"{len(blocks)} blocks are called {len(seen)} times")
    for (call, output), (following, _) in zip(seen, [*seen[1:], (None, None)], strict=True):
        others = [*call.args[1:], *(value for name, value in call.kwargs.items() if name != "hidden_states")]
        if any(tensor.requires_grad for tensor in _tensors(others)):
            raise NotSweepable("blocks are handed more than one tensor that depends on weights")
        if following is not None and following.hidden is not _first(output):
            raise NotSweepable("something happens between the blocks")


def _blocks(loaded: LoadedModel) -> list[nn.Module]:
    return list(loaded.model.get_submodule(loaded.anatomy.blocks_path).children())


def _names_by_block(loaded: LoadedModel) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for name, parameter in loaded.anatomy.parameters.items():
        found.setdefault(parameter.layer, []).append(name)
    return found


def _parameters(loaded: LoadedModel, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Those that the loss can be differentiated by."""
    named = {name: loaded.model.get_parameter(name) for name in names}
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def _forward(
    loaded: LoadedModel, blocks: Sequence[nn.Module], batch: Sequence[TokenSequence], through_head: bool
) -> _Pass:
    """What the blocks are called with. The head, a fifth of SmolLM2, is computed only where its activations are wanted."""
    one = _Pass(batch)

    def keep(index: int, call: _Call, output: Any) -> None:
        one.calls.append(call)
        last = index == len(blocks) - 1
        one.outputs.append(output if last else _with_first(output, None))
        if last and not through_head:
            raise _LastBlockDone

    with _watched(blocks, keep), suppress(_LastBlockDone):
        sequence_nll(loaded, batch)
    return one


def _loss_from(
    loaded: LoadedModel, blocks: Sequence[nn.Module], one: _Pass, leaf: Tensor, tokens: int, number: tuple[int, int]
) -> Tensor:
    """The loss of a batch by the model's own forward, in which the blocks do nothing and the last gives `leaf`."""

    def stand_in(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            last = index == len(blocks) - 1
            return _with_first(one.outputs[index], leaf if last else _Call(args, kwargs).hidden)

        return forward

    with _replaced(blocks, stand_in):
        return finite_loss(loaded, one.batch, tokens, *number)


def _through_block(block: nn.Module, call: _Call, gradient: Tensor | None, parameters: list[nn.Parameter]) -> Tensor:
    """The gradient of a block's input; those of its parameters go to their hooks."""
    leaf = call.hidden.detach().requires_grad_()
    changed = call.with_hidden(leaf)
    output = _first(block(*changed.args, **changed.kwargs))
    torch.autograd.backward(output, gradient, inputs=[leaf, *parameters])
    assert leaf.grad is not None
    return leaf.grad


def _embedded(loaded: LoadedModel, blocks: Sequence[nn.Module], batch: Sequence[TokenSequence]) -> Tensor:
    """The first block's input with what it was computed by."""

    def stop(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            raise _FirstBlockReached(_Call(args, kwargs).hidden)

        return forward

    try:
        with _replaced(blocks, stop):
            sequence_nll(loaded, batch)
    except _FirstBlockReached as reached:
        return reached.hidden
    raise NotSweepable("the first block is not reached")


def _on_both_sides(
    loaded: LoadedModel, blocks: Sequence[nn.Module], outside: dict[str, nn.Parameter], one: _Pass
) -> dict[str, nn.Parameter]:
    """The parameters that are used before the blocks and after them."""
    ends = _embedded(loaded, blocks, one.batch), _loss_from(loaded, blocks, one, _leaf(one.outputs[-1]), 1, (1, 1))
    used = [
        torch.autograd.grad(end.sum(), list(outside.values()), allow_unused=True) if end.requires_grad else ()
        for end in ends
    ]
    if not all(used):
        return {}
    pairs = zip(outside.items(), *used, strict=True)
    return {name: p for (name, p), before, after in pairs if before is not None and after is not None}


def _leaf(output: Any) -> Tensor:
    return _first(output).detach().requires_grad_()


def _first(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple) else output
    if not isinstance(found, Tensor):
        raise NotSweepable("a block does not give a hidden state")
    return found


def _with_first(output: Any, hidden: Tensor | None) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


@contextmanager
def _watched(blocks: Sequence[nn.Module], tell: Callable[[int, _Call, Any], None]) -> Iterator[None]:
    """Tell of every call of a block, with what it was given and gave."""

    def hook_for(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tell(index, _Call(args, kwargs), output)

        return hook

    handles = [block.register_forward_hook(hook_for(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced(blocks: Sequence[nn.Module], forward_for: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """The blocks with other forwards."""
    try:
        for index, block in enumerate(blocks):
            block.forward = forward_for(index)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
