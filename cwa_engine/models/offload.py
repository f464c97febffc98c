"""Offload: blocks stay in CPU memory and come to the device one at a time, for models larger than the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Offload:
    """Keeps the blocks of a model in CPU memory and everything else on the device.

    A block is copied to the device before each call. The copy is dropped after the call, or at the end of `on_device`.
    Outside of a call, edits of a weight change the one in CPU memory.
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
        """A copy on the device; the tensor itself if it is there already."""
        return tensor.to(self.device)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in CPU memory; the tensor itself if it is there already."""
        return tensor.to("cpu")

    @contextmanager
    def on_device(self, block: nn.Module) -> Iterator[None]:
        """Keep the block on the device until the end of the context, however often it is called."""
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
