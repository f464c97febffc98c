"""The first layer of a collapsed model whose output is NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.models.loading import LoadedModel


def first_non_finite_layer(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> str:
    """Name of the first module, in the order of execution, whose output is NaN or infinite on one of `sequences`."""
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
        def hook(
            module: object, inputs: object, output: object
        ) -> None:  # returns None: another value would replace the output
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
