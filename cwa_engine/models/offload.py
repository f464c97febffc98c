"""Blocks that live in CPU memory and come to the device one at a time, for models that are larger than the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Offload:
    """Keeps the blocks of a model in CPU memory, everything else on the device.

    A block is brought to the device when it is called, and its copy there is given up when it has been, or at the end of
    `on_device`. What is written to a weight at rest is written to the one in CPU memory.
    """

    def __init__(self, model: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
        self.device = device
        self._host_data: dict[
            nn.Module, list[tuple[Tensor, Tensor]]
        ] = {}  # of blocks that are away: (tensor, its data)
        self._held: set[nn.Module] = set()
        inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
        for tensor in _tensors(model):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(device)
        for block in blocks:
            block.register_forward_pre_hook(self._before)
            block.register_forward_hook(self._after, always_call=True)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device, or the tensor itself where it is there."""
        return tensor.to(self.device)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in CPU memory, or the tensor itself where it is there."""
        return tensor.to("cpu")

    @contextmanager
    def on_device(self, block: nn.Module) -> Iterator[None]:
        """The block stays on the device until the end, however often it is called."""
        self._load(block)
        self._held.add(block)
        try:
            yield
        finally:
            self._held.discard(block)
            self._unload(block)

    def _before(self, block: nn.Module, args: Any) -> None:
        self._load(block)

    def _after(self, block: nn.Module, args: Any, output: Any) -> None:
        if block not in self._held:
            self._unload(block)

    def _load(self, block: nn.Module) -> None:
        if block not in self._host_data:
            self._host_data[block] = [(tensor, tensor.data) for tensor in _tensors(block)]
            for tensor in _tensors(block):
                tensor.data = self.to_device(tensor.data)

    def _unload(self, block: nn.Module) -> None:
        for tensor, data in self._host_data.pop(block, ()):
            tensor.data = data


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
