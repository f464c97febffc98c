"""Offload: blocks stay in CPU memory and come to the device one at a time, for models larger than the device.

While a block computes, the next one is on its way: the one after it in a forward pass, the one before it in the sweep. On an
NVIDIA device a second stream copies it from page-locked memory, which is what lets a copy run beside kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cwa_engine.machine.memory import available_memory

LEFT_BYTES = 2 * 10**9  # of this machine's memory that page-locking leaves for everything else


class Copying(Protocol):
    """Copies of tensors on their way to a device."""

    def ready(self) -> Sequence[Tensor]:
        """The copies, for whatever the device is asked to compute from now on."""

    def finish(self) -> None:
        """Wait until the tensors in CPU memory have been read, and may change again."""


class _AtOnce:
    """Copies that are there when they have been asked for."""

    def __init__(self, copies: Sequence[Tensor]) -> None:
        self._copies = copies

    def ready(self) -> Sequence[Tensor]:
        return self._copies

    def finish(self) -> None: ...


class _ByStream:
    """Copies that a stream of an NVIDIA device makes while other streams compute."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, stream: torch.cuda.Stream) -> None:
        self._device = device
        with torch.cuda.stream(stream):
            self._copies = [tensor.to(device, non_blocking=True) for tensor in tensors]
            self._made = stream.record_event()

    def ready(self) -> Sequence[Tensor]:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(self._made)
        for copied in self._copies:
            copied.record_stream(computing)  # or their memory is used again before that stream is through with them
        return self._copies

    def finish(self) -> None:
        self._made.synchronize()


@dataclass
class _Ahead:
    """A block on its way before it is called, and the versions of its tensors when it set out."""

    block: nn.Module
    copying: Copying
    versions: list[int]


class Offload:
    """Keeps the blocks of a model in CPU memory and everything else on the device.

    A block is on the device while it is called, or until the end of `on_device`. Outside of a call, edits of a weight change
    the one in CPU memory; a block that set out before the edit is not used.
    """

    def __init__(self, model: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
        self.device = device
        self._blocks = blocks
        self._places = {block: place for place, block in enumerate(blocks)}
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # Of blocks that are away: their tensors with their data in CPU memory, and how they went.
        self._away: dict[nn.Module, tuple[list[tuple[Tensor, Tensor]], Copying]] = {}
        self._held: set[nn.Module] = set()
        self._ahead: _Ahead | None = None
        inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
        for tensor in _tensors(model):
            if id(tensor) not in inside:
                tensor.data = tensor.data.to(device)
        for block in blocks:
            if self._stream:
                _lock_pages(block)
            block.register_forward_pre_hook(self._before)
            block.register_forward_hook(self._after, always_call=True)
        model.register_forward_hook(self._forget, always_call=True)

    def to_device(self, tensor: Tensor) -> Tensor:
        """A copy on the device; the tensor itself if it is there already."""
        return tensor.to(self.device)

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in CPU memory; the tensor itself if it is there already."""
        return tensor.to("cpu")

    def send(self, tensors: Sequence[Tensor]) -> Copying:
        """Begin to copy tensors to the device."""
        if self._stream:
            return _ByStream(tensors, self.device, self._stream)
        return _AtOnce([self.to_device(tensor) for tensor in tensors])

    @contextmanager
    def on_device(self, block: nn.Module) -> Iterator[None]:
        """Keep the block on the device until the end of the context, however often it is called.

        The next one is taken to be the block before it, as in the sweep.
        """
        self._load(block, -1)
        self._held.add(block)
        try:
            yield
        finally:
            self._held.discard(block)
            self._unload(block)

    def _before(self, block: nn.Module, args: Any) -> None:
        self._load(block, +1)

    def _after(self, block: nn.Module, args: Any, output: Any) -> None:
        if block not in self._held:
            self._unload(block)

    def _forget(self, model: nn.Module, args: Any, output: Any) -> None:
        """After a forward pass nobody knows what comes next."""
        self._ahead = None

    def _load(self, block: nn.Module, step: int) -> None:
        if block in self._away:
            return
        tensors = _tensors(block)
        home = [tensor.data for tensor in tensors]
        copying = self._arriving(block) or self._sent(home)
        self._away[block] = list(zip(tensors, home, strict=True)), copying
        for tensor, copied in zip(tensors, copying.ready(), strict=True):
            tensor.data = copied
        self._send_ahead(self._places[block] + step)

    def _arriving(self, block: nn.Module) -> Copying | None:
        """The block on its way, unless it is another one, or its weights have been edited since."""
        ahead, self._ahead = self._ahead, None
        if ahead and ahead.block is block and ahead.versions == _versions(block):
            return ahead.copying
        return None

    def _send_ahead(self, place: int) -> None:
        if not 0 <= place < len(self._blocks) or self._blocks[place] in self._away:
            return
        block = self._blocks[place]
        try:
            copying = self._sent([tensor.data for tensor in _tensors(block)])
        except torch.OutOfMemoryError:
            return  # there is room for one block at a time
        self._ahead = _Ahead(block, copying, _versions(block))

    def _sent(self, tensors: Sequence[Tensor]) -> Copying:
        with torch.inference_mode(False), torch.no_grad():  # weights that have versions, whoever runs the model
            return self.send(tensors)

    def _unload(self, block: nn.Module) -> None:
        home, copying = self._away.pop(block, ((), None))
        if copying:
            copying.finish()
        for tensor, data in home:
            tensor.data = data


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _versions(block: nn.Module) -> list[int]:
    """How often each tensor of a block has been written to."""
    return [tensor._version for tensor in _tensors(block)]


def _lock_pages(block: nn.Module) -> None:
    """Move a block to memory that the system does not page out, where there is room; elsewhere copies take longer.

    The allocator of such memory rounds each tensor up to a power of two.
    """
    for tensor in _tensors(block):
        if 2 * tensor.nbytes + LEFT_BYTES > available_memory().free_bytes:
            return
        try:
            tensor.data = tensor.data.pin_memory()
        except RuntimeError:  # the system allows no more of it
            return
