"""Fan-out: how many weights read the output of a weight. A norm gain acts on whole columns of the matrices after it.

A weight of a matrix takes part in one product for each token. The output of a norm is read by every row of the matrices
after it, so zeroing one gain zeroes a column of each of them. A feature of the embedding, or a bias that is added to the
hidden state, is read by all later norms of the hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """A called norm and the number of output features that read it; None if experts do, each for some of the tokens."""

    path: str
    width: int
    readers: int | None = 0


@dataclass
class _Trace:
    """The norms and linear layers of a forward pass, in the order of their calls."""

    embeddings: set[str]
    norms: list[_Norm] = field(default_factory=list)
    called_before: dict[str, int] = field(default_factory=dict)  # linear layer -> norms that were called before it


def fan_out(loaded: LoadedModel, parameter: Parameter) -> int | None:
    """How many weights read each feature of `parameter`: 1 for a matrix; None if it is not known."""
    trace = _trace(loaded)
    path, _, leaf = parameter.name.rpartition(".")
    if path in trace.embeddings:
        return _sum([norm for norm in trace.norms if norm.width == parameter.shape[-1]])
    if not parameter.is_vector:
        return 1
    if parameter.component == "norm":
        return _sum([norm for norm in trace.norms if norm.path == path])
    if leaf == "bias" and parameter.component in ("o", "down") and path in trace.called_before:
        later = trace.norms[trace.called_before[path] :]
        return _sum([norm for norm in later if norm.width == parameter.shape[-1]])
    return None


def _sum(norms: Sequence[_Norm]) -> int | None:
    counts = [norm.readers for norm in norms]
    return None if None in counts else sum(count or 0 for count in counts) or None


def trace_norms(loaded: LoadedModel) -> None:
    """Find out which linear layers read which norms by running two tokens through the model, once for each model."""
    _trace(loaded)


def _trace(loaded: LoadedModel) -> _Trace:
    return loaded.facts.once("norms", lambda: _traced(loaded))


def _out_features(module: nn.Module) -> int:
    weight = module.get_parameter("weight")
    return weight.shape[1] if isinstance(module, Conv1D) else weight.shape[0]


@torch.inference_mode()
def _traced(loaded: LoadedModel) -> _Trace:
    modules = dict(loaded.model.named_modules())
    routers = {name.rpartition(".")[0] for name, p in loaded.anatomy.parameters.items() if p.component == "router"}
    trace = _Trace({path for path, module in modules.items() if isinstance(module, nn.Embedding)})
    outputs: list[Tensor] = []

    def after_norm(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                trace.norms.append(_Norm(path, output.shape[-1]))
                outputs.append(output)

        return hook

    def after_linear(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            trace.called_before.setdefault(path, len(trace.norms))
            for norm, written in zip(trace.norms, outputs, strict=True):
                if args and isinstance(args[0], Tensor) and args[0].data_ptr() == written.data_ptr():
                    known = norm.readers is not None and path not in routers
                    norm.readers = (norm.readers or 0) + _out_features(module) if known else None

        return hook

    handles = []
    for path, module in modules.items():
        if isinstance(module, (nn.Linear, Conv1D)) or path in routers:
            handles.append(module.register_forward_hook(after_linear(path)))
        elif any(parameter.dim() == 1 for parameter in module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(after_norm(path)))
    try:
        logits_of(loaded.model, torch.tensor([[0, 1]], device=loaded.device), None)
    finally:
        for handle in handles:
            handle.remove()
    return trace
