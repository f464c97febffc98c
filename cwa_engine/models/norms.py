"""The factor of norms: most multiply by their weight w, some (Gemma, Nemotron, Qwen3-Next) by 1 + w."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TOKENS = 3


def norm_offsets(model: nn.Module, names: list[str]) -> dict[str, float]:
    """Name -> offset c, for one-dimensional parameters w whose module multiplies by (w + c).

    One module of each class is called with weights of zero and of one. A module that does not take one or two hidden
    states counts as having no offset.
    """
    by_class: dict[type, float] = {}
    found = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if type(module) not in by_class:
            by_class[type(module)] = _offset(module, leaf)
        found[name] = by_class[type(module)]
    return found


@torch.no_grad()
def _offset(module: nn.Module, leaf: str) -> float:
    """c of y = x̂ (w + c) + b."""
    zeros = {name: torch.zeros(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    x = torch.linspace(-1, 1, _TOKENS * zeros[leaf].numel()).view(1, _TOKENS, -1)

    def output(value: float) -> Tensor | None:
        weights = {**zeros, leaf: torch.full(zeros[leaf].shape, value)}
        for arguments in ((x,), (x, x)):  # a gated norm takes the gate as its second argument
            try:
                result = torch.func.functional_call(module, weights, arguments)
            except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
                continue
            if isinstance(result, Tensor) and result.shape == x.shape:
                return result
        return None

    at_zero, at_one = output(0.0), output(1.0)
    if at_zero is None or at_one is None:
        return 0.0
    slope = at_one - at_zero
    moved = slope.abs() > 1e-3
    if not moved.any():
        return 0.0
    ratios = at_zero[moved] / slope[moved]
    offset = float(ratios.median())
    is_constant = torch.allclose(ratios, ratios.median().expand_as(ratios), rtol=1e-3, atol=1e-3)
    return round(offset, 3) + 0.0 if is_constant else 0.0
