"""Where a model collapses: the first layer that puts out NaN or infinity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.models.loading import LoadedModel


def first_non_finite_layer(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> str:
    """Name of the first module, in the order of execution, that puts out NaN or infinity on any of `sequences`."""
    for sequence in sequences:
        with _first_non_finite(loaded) as found, torch.inference_mode():
            ids = torch.tensor([sequence.ids], device=loaded.device)
            loaded.model(input_ids=ids, use_cache=False)
        if found:
            return found[0]
    return "loss"


@contextmanager
def _first_non_finite(loaded: LoadedModel) -> Iterator[list[str]]:
    found: list[str] = []

    def hook_for(name: str) -> object:
        def hook(module: object, inputs: object, output: object) -> None:  # None, or the output would be replaced
            tensor = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
                found.append(name)

        return hook

    leaves = [(name, m) for name, m in loaded.model.named_modules() if not any(m.children())]
    handles = [module.register_forward_hook(hook_for(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
