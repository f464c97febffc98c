"""Gradients of each sequence of a batch at the speed of the batch.

The gradient of a linear layer's weight is the sum over tokens of outer products of what came back to its output with what
it read; taken over the tokens of one sequence at a time, it is the gradient of that sequence. They are made some rows of
the weight at a time, so that they are squared and added up before they leave the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cwa_engine.models.chain import Chain, ResumePoint, chain_of
from cwa_engine.models.loading import LoadedModel

CACHED = 2**20  # numbers made at once: 4 MiB of float32 are in a CPU's cache still, and enough for a fast product
LARGE = (
    2**24
)  # the same on a GPU, which wants few and large pieces; small beside the share of memory that a plan leaves

# (parameter, first row of its stored first axis, gradients of the rows from there on by sequence [B, rows, ...])
TakeRows = Callable[[str, int, Tensor], None]


class NotSeparable(Exception):
    """Why the gradients of a batch's sequences cannot be told apart."""


def check_separable(loaded: LoadedModel) -> Chain:
    """The model as a chain, every weight of whose blocks is in a module that is called once with one batch of tokens.

    Two sequences of three tokens are run through the model to see. Raises NotAChain or NotSeparable.
    """
    chain = chain_of(loaded)
    if not chain.batch_first:
        raise NotSeparable("its hidden states are not one sequence after the other")
    named = {n: loaded.model.get_parameter(n) for n, p in loaded.anatomy.parameters.items() if p.layer is not None}
    ids = torch.tensor([[0, 1, 0], [1, 0, 1]], device=loaded.device)
    with torch.no_grad(), gradients_by_sequence(loaded.model, named, 2, lambda name, start, rows: None) as called:
        start = chain.first_input(ids, torch.ones_like(ids))
        with torch.enable_grad():
            chain.run_blocks(ids, torch.ones_like(ids), ResumePoint(0, start.requires_grad_()))
    for module, shapes in called.items():
        if len(shapes) != 1 or any(shape[0] not in (2, 6) for shape in shapes[0]):
            raise NotSeparable(f"a {type(module).__name__} is not called once with all tokens in order")
    missing = {type(owner).__name__ for owner in _owners(loaded.model, named) if owner not in called}
    if missing:
        raise NotSeparable(f"weights of a {missing.pop()} are used without calling it")
    return chain


@contextmanager
def gradients_by_sequence(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], batch: int, take: TakeRows
) -> Iterator[dict[nn.Module, list[tuple[torch.Size, torch.Size]]]]:
    """Hand `take` the gradients of each of `batch` sequences by these parameters, instead of their sum.

    Gives the modules that were called, with the shapes of input and output of each call. Raises NotSeparable where a
    module that owns such a parameter is called with anything but one tensor.
    """
    owners = _owners(model, parameters)
    called: dict[nn.Module, list[tuple[torch.Size, torch.Size]]] = {}
    frozen = [parameter for parameter in parameters.values() if parameter.requires_grad]
    wanted = {name for name, parameter in parameters.items() if parameter.requires_grad}
    again = False  # while a module is called again for one sequence

    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        if again:
            return
        if kwargs or len(args) != 1 or not (isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            raise NotSeparable(f"a {type(module).__name__} is called with more than one tensor")
        called.setdefault(module, []).append((args[0].shape, output.shape))
        names = {leaf: name for leaf, name in owners[module].items() if name in wanted}
        if not names or not torch.is_grad_enabled():
            return
        inputs = args[0].detach()
        if not output.requires_grad:  # its weights alone made it depend on anything
            output.requires_grad_()
        output.register_hook(lambda delta: send(module, names, inputs, delta))  # type: ignore[no-untyped-call]

    def send(module: nn.Module, names: dict[str, str], inputs: Tensor, delta: Tensor) -> None:
        nonlocal again
        if type(module).forward in (nn.Linear.forward, Conv1D.forward):
            _linear(names, inputs, delta, batch, isinstance(module, Conv1D), take)
            return
        again = True
        try:
            _any(module, names, inputs, delta, batch, take)
        finally:
            again = False

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in owners]
    try:
        for parameter in frozen:  # or autograd would make the sum as well
            parameter.requires_grad_(False)
        yield called
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


def _owners(model: nn.Module, names: Mapping[str, nn.Parameter]) -> dict[nn.Module, dict[str, str]]:
    """module -> {its own name of a parameter: the model's name of it}"""
    owners: dict[nn.Module, dict[str, str]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        owners.setdefault(model.get_submodule(path), {})[leaf] = name
    return owners


def _linear(names: dict[str, str], inputs: Tensor, delta: Tensor, batch: int, transposed: bool, take: TakeRows) -> None:
    """A linear layer's gradients: those of its weight as rows by columns of what is stored, [B, rows, columns]."""
    read, back = (
        inputs.reshape(batch, -1, inputs.shape[-1]),
        delta.reshape(batch, -1, delta.shape[-1]),
    )  # [B, T, features]
    if "weight" in names:
        rows, columns = (read, back) if transposed else (back, read)
        fits = CACHED if inputs.device.type == "cpu" else LARGE
        step = max(1, fits // (batch * columns.shape[-1]))
        for start in range(0, rows.shape[-1], step):
            take(names["weight"], start, rows[..., start : start + step].mT @ columns)
    if "bias" in names:
        take(names["bias"], 0, back.sum(1))


def _any(module: nn.Module, names: dict[str, str], inputs: Tensor, delta: Tensor, batch: int, take: TakeRows) -> None:
    """Gradients by calling the module again for one sequence after the other."""
    own = {leaf: module.get_parameter(leaf).detach().requires_grad_() for leaf in names}
    found: dict[str, list[Tensor]] = {leaf: [] for leaf in names}
    for one, back in zip(inputs.chunk(batch), delta.chunk(batch), strict=True):
        with torch.enable_grad():
            output = torch.func.functional_call(module, own, (one,))
            gradients = torch.autograd.grad(output, list(own.values()), back, allow_unused=True, materialize_grads=True)
        for leaf, gradient in zip(own, gradients, strict=True):
            found[leaf].append(gradient)
    for leaf, rows in found.items():
        take(names[leaf], 0, torch.stack(rows))
