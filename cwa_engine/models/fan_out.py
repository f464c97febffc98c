"""How many weights read what a weight writes: one norm gain decides over a whole column of the matrices after it.

A weight of a matrix takes part in one product a token. What a norm puts out is read by every row of the matrices that
follow, so zeroing one gain is zeroing a column of all of them. An embedding, and a bias of what is added to the hidden
state, is read by all norms that come later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel


@dataclass
class _Norm:
    """A norm that was called: what it put out, and how many output features read it."""

    path: str
    output: Tensor
    readers: int = 0


@dataclass
class _Trace:
    """The norms and linear layers of a forward pass in the order they were called."""

    norms: list[_Norm] = field(default_factory=list)
    called_before: dict[str, int] = field(default_factory=dict)  # linear layer -> norms that were called before it


def fan_outs(loaded: LoadedModel) -> dict[str, int | None]:
    """Parameter name -> how many weights read each of its features; 1 for matrices, None where that is not known.

    Found out once, by running two tokens through the model.
    """
    if "fan_outs" not in loaded.memo:
        trace = _trace(loaded)
        parameters = loaded.anatomy.parameters
        embeddings = {path for path, module in loaded.model.named_modules() if isinstance(module, nn.Embedding)}
        loaded.memo["fan_outs"] = {name: _fan_out(p, trace, embeddings) for name, p in parameters.items()}
    found: dict[str, int | None] = loaded.memo["fan_outs"]
    return found


def _fan_out(parameter: Parameter, trace: _Trace, embeddings: set[str]) -> int | None:
    path, _, leaf = parameter.name.rpartition(".")
    if path in embeddings:
        return sum(norm.readers for norm in trace.norms) or None
    if not parameter.is_vector:
        return 1
    if parameter.component == "norm":
        return sum(norm.readers for norm in trace.norms if norm.path == path) or None
    if leaf == "bias" and parameter.component in ("o", "down") and path in trace.called_before:
        return sum(norm.readers for norm in trace.norms[trace.called_before[path] :]) or None
    return None


@torch.inference_mode()
def _trace(loaded: LoadedModel) -> _Trace:
    trace = _Trace()
    norms = {
        name.rpartition(".")[0]
        for name, parameter in loaded.anatomy.parameters.items()
        if parameter.component == "norm" and parameter.is_vector
    }

    def after_norm(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                trace.norms.append(_Norm(path, output))

        return hook

    def after_linear(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            trace.called_before.setdefault(path, len(trace.norms))
            for norm in trace.norms:
                if args and isinstance(args[0], Tensor) and args[0].data_ptr() == norm.output.data_ptr():
                    norm.readers += output.shape[-1]

        return hook

    handles = []
    for path, module in loaded.model.named_modules():
        if path in norms:
            handles.append(module.register_forward_hook(after_norm(path)))
        elif isinstance(module, (nn.Linear, Conv1D)):
            handles.append(module.register_forward_hook(after_linear(path)))
    try:
        logits_of(loaded.model, torch.tensor([[0, 1]], device=loaded.device), None)
    finally:
        for handle in handles:
            handle.remove()
    return trace
