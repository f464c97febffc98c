"""Many copies of one batch, each with one weight zeroed: several weights are measured in one forward pass.

Zeroing W[o, i] of a linear layer takes w x_i from output o: the weights stay as they are, and what the layer puts out is
changed in one copy. Any other small module, a norm for one, is called again for that copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cwa_engine.models.anatomy import Parameter


class NotCopyable(Exception):
    """Copies of a batch cannot each have a weight of their own zeroed in these parameters."""

    def __init__(self, parameters: set[str]) -> None:
        super().__init__(*parameters)
        self.parameters = parameters


@dataclass(frozen=True)
class Zeroed:
    """One weight that counts as zero, by parameter and place in what is stored."""

    parameter: Parameter
    flat_index: int


Owners = dict[str, list[tuple[nn.Module, str]]]


def owners_of(model: nn.Module) -> Owners:
    """The modules that hold each parameter, several where it is tied, and what they call it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owners: Owners = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(names[id(parameter)], []).append((module, leaf))
    return owners


@contextmanager
def zeroed_in_copies(owners: Owners, weights: Sequence[Zeroed]) -> Iterator[None]:
    """In row c of every batch that passes meanwhile, `weights[c]` counts as zero.

    Raises NotCopyable, at the latest on exit, where a weight's module is not called with one tensor of all copies in order.
    """
    changes: dict[nn.Module, list[tuple[int, str, Zeroed]]] = {}
    for row, weight in enumerate(weights):
        for module, leaf in owners[weight.parameter.name]:
            changes.setdefault(module, []).append((row, leaf, weight))

    uncalled = set(changes)

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        uncalled.discard(module)
        if (
            len(args) != 1
            or "forward" in module.__dict__  # bound to this very module, as in a block of several devices
            or not isinstance(output, Tensor)
            or len(output) % len(weights)
            or len(args[0]) % len(weights)
        ):
            raise refuse([module])
        read, put_out = (_by_copy(tensor, len(weights)) for tensor in (args[0], output.clone()))
        for row, leaf, weight in changes[module]:
            _zero(module, leaf, weight, read[row], put_out[row])
        return put_out.view(output.shape)

    def refuse(modules: Iterable[nn.Module]) -> NotCopyable:
        return NotCopyable({weight.parameter.name for module in modules for _, _, weight in changes[module]})

    handles = [module.register_forward_hook(hook) for module in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if uncalled:  # the weights may have been used all the same
        raise refuse(uncalled)


def _by_copy(tensor: Tensor, copies: int) -> Tensor:
    """[copies, its part of the first axis, ...]"""
    return tensor.view(copies, -1, *tensor.shape[1:])


def _zero(module: nn.Module, leaf: str, weight: Zeroed, read: Tensor, put_out: Tensor) -> None:
    """Change what a module put out in one copy, [..., features], as if one of its weights were zero."""
    where = weight.parameter.place(weight.flat_index)
    value = module.get_parameter(leaf).detach().view(-1)[weight.flat_index]
    linear = type(module).forward in (nn.Linear.forward, Conv1D.forward)
    if linear and leaf == "weight":
        put_out[..., where.out_feature].sub_(read[..., where.in_feature] * value)
    elif linear:
        put_out[..., where.out_feature].sub_(value)
    elif isinstance(module, nn.Embedding):
        token, feature = divmod(weight.flat_index, module.embedding_dim)
        put_out[..., feature].masked_fill_(read == token, 0)
    else:
        without = module.get_parameter(leaf).detach().clone()
        without.view(-1)[weight.flat_index] = -weight.parameter.offset
        twin = copy.copy(module)  # not the module itself, whose hooks would be called again
        twin._parameters = {**module._parameters, leaf: nn.Parameter(without, requires_grad=False)}
        put_out.copy_(twin.forward(read))
