"""A model as a chain: embedding, decoder blocks one after the other, and the tail (final norm and head).

A model is a chain if its blocks are called once each, in order, and pass on one hidden state and nothing else that depends
on weights. A forward pass of a chain can resume at any block from a cached hidden state: the model's own forward runs, and
the earlier blocks do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel


class NotAChain(Exception):
    """The blocks of a model cannot be computed one by one; the message is the reason."""


@dataclass(frozen=True)
class BlockCall:
    """The arguments of a call of a block. The hidden state is the first one, positional or named `hidden_states`."""

    args: tuple[Any, ...]
    kwargs: dict[str, object]

    @property
    def hidden(self) -> Tensor:
        found = self.args[0] if self.args else self.kwargs.get("hidden_states")
        if not isinstance(found, Tensor):
            raise NotAChain("a block is not called with a hidden state")
        return found

    @property
    def others(self) -> list[Any]:
        """Every argument but the hidden state."""
        return [*self.args[1:], *(value for name, value in self.kwargs.items() if name != "hidden_states")]

    def with_hidden(self, hidden: Tensor) -> BlockCall:
        if self.args:
            return BlockCall((hidden, *self.args[1:]), self.kwargs)
        return BlockCall((), {**self.kwargs, "hidden_states": hidden})


@dataclass
class BlockTrace:
    """A record of one batch's pass through the blocks: their calls, their other outputs, the last hidden state."""

    calls: dict[int, BlockCall] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)  # outputs of the blocks, each with None for the hidden state
    hidden: Tensor | None = None

    @property
    def last_hidden(self) -> Tensor:
        assert self.hidden is not None
        return self.hidden


@dataclass(frozen=True)
class ResumePoint:
    """Where and with what a forward pass resumes: the input of block `index`, or of the tail if that is the block count."""

    index: int
    hidden: Tensor
    outputs: Sequence[Any] = ()  # of the earlier blocks, as in `BlockTrace`


class _StopForward(Exception):
    """Ends a forward pass early, when the rest is not needed."""


def has_no_values(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no values, as in a `FakeModel`."""
    return isinstance(tensor, FakeTensor)


class Chain:
    """A model whose forward pass can resume at any block."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Runs three tokens through the model to check the conditions. Raises NotAChain."""
        if not loaded.anatomy.blocks:
            raise NotAChain("it has no list of decoder blocks")
        self.model, self._offload = loaded.model, loaded.offload
        self.blocks: list[nn.Module] = list(loaded.model.get_submodule(loaded.anatomy.blocks_path).children())
        owners = [id(parameter) for block in self.blocks for parameter in block.parameters()]
        if len(owners) != len(set(owners)):
            raise NotAChain("blocks share weights")
        with torch.inference_mode(False), torch.enable_grad():
            ids = torch.tensor([[0, 1, 0]], device=loaded.device)
            before = self._checked(ids)
            with torch.no_grad():
                trace = self.run_blocks(ids, None)
            tail = self.logits_from(self.tail(trace, trace.last_hidden.detach()), ids, None)
            looked_up, used = self._gradients(before), self._gradients(tail)
            self.before, self.after = frozenset(looked_up), frozenset(used)
            tokens = self.model.get_input_embeddings().weight
            self.lookups = frozenset(
                name
                for name, gradient in looked_up.items()
                if self.model.get_parameter(name) is tokens and (has_no_values(gradient) or not gradient[2:].any())
            )
            if others := (self.before & self.after) - self.lookups:
                raise NotAChain(f"{min(others)} is used on both sides of the blocks, and not to look up tokens")
        # Some models put the axis of tokens first, or have several streams of tokens.
        self.batch_first = trace.last_hidden.shape[:2] == ids.shape
        self.tail_by_token = self.batch_first and self._is_by_token(trace, ids, tail)

    def _is_by_token(self, trace: BlockTrace, ids: Tensor, tail: Tensor) -> bool:
        """Whether the tail gives the last token the same logits without the other tokens. True for a model without values."""
        if has_no_values(tail):
            return True
        with torch.inference_mode(False), torch.no_grad():
            last = self.logits_from(self.tail(trace, trace.last_hidden[:, -1:]), ids[:, -1:], None)
        return torch.allclose(last, tail[:, -1:], rtol=1e-3, atol=1e-5)

    def _checked(self, ids: Tensor) -> Tensor:
        """Check that the blocks pass on one hidden state in order. Returns the first block's input. Raises NotAChain."""
        seen: list[tuple[BlockCall, Any]] = []

        def tell(index: int, call: BlockCall, output: Any) -> Any:
            # Detach, so that autograd does not keep the blocks before.
            cut = _with_first(output, _first(output).detach().requires_grad_())
            seen.append((call, cut))
            return cut

        with _observed(self.blocks, tell):
            logits_of(self.model, ids, None)
        if len(seen) != len(self.blocks):
            raise NotAChain(f"{len(self.blocks)} blocks are called {len(seen)} times")
        for (call, output), (following, _) in zip(seen, [*seen[1:], (None, None)], strict=True):
            if any(tensor.requires_grad for tensor in _tensors(call.others)):
                raise NotAChain("blocks are handed more than one tensor that depends on weights")
            if following is not None and following.hidden is not _first(output):
                raise NotAChain("something happens between the blocks")
        return seen[0][0].hidden

    def _gradients(self, end: Tensor) -> dict[str, Tensor]:
        """Gradients of the sum of a tensor, by parameter, for the parameters that it depends on."""
        named = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if not end.requires_grad:
            return {}
        gradients = torch.autograd.grad(end.sum(), list(named.values()), allow_unused=True)
        return {name: g for name, g in zip(named, gradients, strict=True) if g is not None}

    def first_block(self, loaded: LoadedModel, names: Iterable[str]) -> int:
        """The first block whose output depends on one of these parameters; the number of blocks for parameters of the tail."""
        found = len(self.blocks)
        for name in names:
            layer, frozen = loaded.anatomy.parameters[name].layer, not self.model.get_parameter(name).requires_grad
            if frozen or name in self.before or (layer is None and name not in self.after):
                return 0
            found = min(found, len(self.blocks) if layer is None else layer)
        return found

    def run_blocks(
        self,
        ids: Tensor,
        mask: Tensor | None,
        start: ResumePoint | None = None,
        keep: Callable[[int], bool] = lambda index: True,
        with_tail: bool = False,
    ) -> BlockTrace:
        """Run a batch through the blocks, from `start` on if given.

        The trace has the calls of the blocks for which `keep(index)` is true. The tail, a fifth of the time of SmolLM2,
        runs only `with_tail`.
        """
        trace = BlockTrace()

        def tell(index: int, call: BlockCall, output: Any) -> None:
            if keep(index):
                trace.calls[index] = call.with_hidden(self.to_host(call.hidden))
            trace.outputs.append(_with_first(output, None))
            if index == len(self.blocks) - 1:
                trace.hidden = _first(output)
                if not with_tail:
                    raise _StopForward

        with _observed(self.blocks, tell), self._resumed(start), suppress(_StopForward):
            logits_of(self.model, ids, mask)
        return trace

    def logits_from(self, start: ResumePoint | None, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The logits of the model's own forward, resumed at `start` if given."""
        with self._resumed(start):
            return logits_of(self.model, ids, mask)

    def tail(self, trace: BlockTrace, hidden: Tensor | None = None) -> ResumePoint:
        """The resume point after all blocks, with the trace's last hidden state or with `hidden`."""
        return ResumePoint(len(self.blocks), trace.last_hidden if hidden is None else hidden, trace.outputs)

    @contextmanager
    def _resumed(self, start: ResumePoint | None) -> Iterator[None]:
        """Make the earlier blocks do nothing, and give the hidden state to block `start.index`."""
        if start is None:
            yield
            return
        if start.index == 0:
            with _input_replaced(self.blocks[0], start.hidden):
                yield
            return

        def stand_in(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                given = start.hidden if number == start.index - 1 else BlockCall(args, kwargs).hidden
                return _with_first(start.outputs[number], given)

            return forward

        with _forwards_replaced(self.blocks[: start.index], stand_in):
            yield

    def first_input(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The first block's input, with its autograd graph if gradients are on."""
        found: list[Tensor] = []

        def stop(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                found.append(BlockCall(args, kwargs).hidden)
                raise _StopForward

            return forward

        with _forwards_replaced(self.blocks[:1], stop), suppress(_StopForward):
            logits_of(self.model, ids, mask)
        return found[0]

    def to_host(self, hidden: Tensor) -> Tensor:
        """A hidden state for keeping: moved to CPU memory if the blocks are there."""
        return self._offload.to_host(hidden) if self._offload else hidden

    def to_device(self, hidden: Tensor) -> Tensor:
        """A kept hidden state, moved back to the device."""
        return self._offload.to_device(hidden) if self._offload else hidden

    def on_device(self, index: int) -> AbstractContextManager[None]:
        """Keep a block and its weights on the device until the end of the context."""
        return self._offload.on_device(self.blocks[index]) if self._offload else nullcontext()

    def run_block(self, index: int, call: BlockCall) -> Tensor:
        """Call one block. Returns its hidden state."""
        return _first(self.blocks[index](*call.args, **call.kwargs))


def chain_of(loaded: LoadedModel) -> Chain:
    """The model as a chain; checked once for each model. Raises NotAChain."""

    def find() -> Chain | str:
        try:
            return Chain(loaded)
        except NotAChain as reason:
            return str(reason)

    found = loaded.facts.once("chain", find)
    if isinstance(found, str):
        raise NotAChain(found)
    return found


def _first(output: Any) -> Tensor:
    found = output[0] if isinstance(output, tuple) else output
    if not isinstance(found, Tensor):
        raise NotAChain("a block does not give a hidden state")
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
def _observed(blocks: Sequence[nn.Module], tell: Callable[[int, BlockCall, Any], Any]) -> Iterator[None]:
    """Call `tell(index, call, output)` after every call of a block. If it returns a value, that replaces the output."""

    def hook_for(index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object], output: Any) -> Any:
            return tell(index, BlockCall(args, kwargs), output)

        return hook

    handles = [block.register_forward_hook(hook_for(i), with_kwargs=True) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _input_replaced(first: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Give `hidden` to the first block, whatever the layers before it compute."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, object]) -> tuple[Any, Any]:
        changed = BlockCall(args, kwargs).with_hidden(hidden)
        return changed.args, changed.kwargs

    handle = first.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _forwards_replaced(blocks: Sequence[nn.Module], forward_for: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of each block by `forward_for(index)` until the end of the context."""
    own = [block.__dict__.get("forward") for block in blocks]  # of blocks on several devices
    try:
        for index, block in enumerate(blocks):
            block.forward = forward_for(index)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward
