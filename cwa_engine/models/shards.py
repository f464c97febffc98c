"""One model over several devices: its decoder blocks lie on them in order, everything else on the first.

    cuda:0    embedding, final norm, head, tables of positions; blocks 0 to 37
    cuda:1    blocks 38 to 79

A block is never split. The hooks of accelerate bring what a block is given to its device; what it gives stays there until
the next block is called, and what the last block gives comes back to the first device. So the hidden state crosses from one
device to the next once, an embedding that is tied to the head is there once, and logits, token ids and losses are on one
device. `device_map="balanced"` of accelerate does not keep to this: it counts the weights alone, fills one device after the
other with room for a block to spare, and puts the head on the last.

The split is the one of all splits in order whose fullest device is least full, by the share of its free memory that weights
take; gradients and hidden states, which are spread as the blocks are, need the rest. Free memory counts in eighths of a
device, so that what little changes there does not change the split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import Tensor, nn

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.devices import name_of
from cwa_engine.base.errors import DoesNotFit, InvalidInput
from cwa_engine.machine.memory import Memory
from cwa_engine.models.anatomy import Anatomy
from cwa_engine.models.forward import logits_of
from cwa_engine.models.memory import device_memory

EIGHTHS = 8
_PLENTY = 2**60  # bytes

# Logits over several devices may round otherwise than on a CPU; in units of their standard deviation. Weights or inputs that
# are mixed up differ by 0.05 to 3, see `prompting.generation`.
_ROUNDING = {torch.float64: 1e-3, torch.float32: 2e-2, torch.bfloat16: 0.2, torch.float16: 0.1}


@dataclass(frozen=True)
class Shards:
    """Which device each decoder block lies on, and how many bytes of weights each device holds."""

    devices: tuple[torch.device, ...]  # the first has all that is outside the blocks
    of_block: tuple[torch.device, ...]
    weights: tuple[int, ...]  # bytes on each device
    room: tuple[int, ...]  # bytes for weights and work on each device

    @property
    def name(self) -> str:
        """The devices as an option names them: "cuda:0+cuda:1"."""
        return name_of(tuple(str(device) for device in self.devices))

    @property
    def described(self) -> str:
        """For a note: which blocks lie where."""
        ranges = []
        for device in self.devices:
            blocks = [number for number, at in enumerate(self.of_block) if at == device]
            ranges.append(f"{_range(blocks)} on {device}")
        return f"its blocks lie on {len(self.devices)} devices: {', '.join(ranges)}; all else on {self.devices[0]}"

    def needed(self, work: Mapping[torch.device, int]) -> int:
        """Bytes beside the weights that must be free on all devices together for this work on each to fit its device.

        On devices with equal room it is what all would need if each were as full as the fullest.
        """
        each = zip(self.devices, self.weights, self.room, strict=True)
        fullest = max((held + work.get(device, 0)) / max(1, room) for device, held, room in each)
        return max(0, int(fullest * sum(self.room)) - sum(self.weights))

    def needed_as_weights(self, size: int) -> int:
        """As `needed`, for work of `size` bytes that is spread as the weights are."""
        shares = zip(self.devices, self.weights, strict=True)
        return self.needed({device: size * held // max(1, sum(self.weights)) for device, held in shares})

    def share_of_fullest(self, size: int) -> int:
        """`size` bytes that are spread as the weights are, as if all devices were as full of them as the fullest."""
        fullest = max(held / max(1, room) for held, room in zip(self.weights, self.room, strict=True))
        return int(size * fullest * sum(self.room)) // max(1, sum(self.weights))

    def share_anywhere(self, size: int) -> int:
        """`size` bytes that may lie on any device, as if all were as full of them as the smallest would be."""
        return size * sum(self.room) // max(1, min(self.room))

    def needed_anywhere(self, size: int) -> int:
        """As `needed`, for work of `size` bytes that is now on one device, now on another."""
        return self.needed(dict.fromkeys(self.devices, size))

    def free_as_weights(self, free: Callable[[torch.device], int]) -> int:
        """The most bytes that fit if they are spread as the weights are, by what is free on each device."""
        held = zip(self.devices, self.weights, strict=True)
        return min(free(device) * sum(self.weights) // max(1, size) for device, size in held)

    def seen_now(self, free: Callable[[torch.device], int]) -> Shards:
        """The same, with the room that each device has now that the weights are there."""
        room = (held + free(device) for device, held in zip(self.devices, self.weights, strict=True))
        return replace(self, room=tuple(room))

    def on(self, devices: Sequence[torch.device]) -> Shards:
        """The same split on other devices."""
        others = dict(zip(self.devices, devices, strict=True))
        return replace(self, devices=tuple(devices), of_block=tuple(others[device] for device in self.of_block))


def _range(blocks: Sequence[int]) -> str:
    if not blocks:
        return "none"
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"


def split(blocks: Sequence[int], outside: int, room: Sequence[int]) -> tuple[int, ...]:
    """For each block the place of its device, ascending, so that the largest of bytes / room is least.

    `blocks` are bytes of the blocks, `outside` those of everything else, on the first device. Every device but the first has
    a block. Of equal splits the one that fills the first devices most counts.
    """
    ends = [0, *accumulate(blocks)]
    most = len(blocks)
    # fullest[d][n]: the least that the fullest device is full where blocks 0 to n - 1 lie on the first d + 1 devices.
    fullest = [[(outside + ends[n]) / max(1, room[0]) for n in range(most + 1)]]
    begins: list[list[int]] = [[0] * (most + 1)]
    for place in range(1, len(room)):
        found, begun = [float("inf")] * (most + 1), [0] * (most + 1)
        for n in range(place, most + 1):
            for begin in range(n - 1, place - 2, -1):  # later begins first: they fill the devices before
                full = max(fullest[-1][begin], (ends[n] - ends[begin]) / max(1, room[place]))
                if full < found[n]:
                    found[n], begun[n] = full, begin
        fullest.append(found)
        begins.append(begun)
    places: list[int] = []
    stop = most
    for place in reversed(range(len(room))):
        start = begins[place][stop]
        places[:0] = [place] * (stop - start)
        stop = start
    return tuple(places)


def plan_shards(
    name: str, model: nn.Module, anatomy: Anatomy, devices: Sequence[torch.device], memory: Sequence[Memory]
) -> Shards:
    """Where the blocks of a model go; nothing is moved. Raises InvalidInput, and DoesNotFit with the numbers."""
    if not anatomy.blocks:
        raise InvalidInput(
            f"{name} cannot lie on several devices: it has no list of decoder blocks", hint=_one(devices)
        )
    blocks = [_bytes(block) for block in model.get_submodule(anatomy.blocks_path).children()]
    if len(blocks) < len(devices):
        raise InvalidInput(f"{name} has {len(blocks)} blocks, too few for {len(devices)} devices", hint=_one(devices))
    outside = max(0, _bytes(model) - sum(blocks))
    rounded = [max(1, each.free_bytes * EIGHTHS // max(1, each.total_bytes)) * each.total_bytes for each in memory]
    for room in (rounded, [each.free_bytes for each in memory]):
        places = split(blocks, outside, room)
        held = [outside, *[0] * (len(devices) - 1)]
        for size, place in zip(blocks, places, strict=True):
            held[place] += size
        if all(size <= each.free_bytes for size, each in zip(held, memory, strict=True)):
            at = tuple(devices[place] for place in places)
            return Shards(tuple(devices), at, tuple(held), tuple(each.free_bytes for each in memory))
    needs = ", ".join(
        f"{size / 1e9:.2f} GB of {each.free_bytes / 1e9:.2f} GB free on {device}"
        for device, size, each in zip(devices, held, memory, strict=True)
    )
    raise DoesNotFit(
        f"{name} does not fit on these devices: it needs {needs}", hint="name more devices, or try --dtype bfloat16"
    )


def planned_now(name: str, model: nn.Module, anatomy: Anatomy, devices: Sequence[torch.device]) -> Shards:
    """As `plan_shards`, by the memory that the devices have free."""
    return plan_shards(name, model, anatomy, devices, [device_memory(device) for device in devices])


def split_by(
    name: str, model: nn.Module, anatomy: Anatomy, devices: Sequence[torch.device], sizes: Sequence[int]
) -> Shards:
    """As `plan_shards`, on devices whose memory is as these sizes to one another, and plenty of it."""
    most = max(1, *sizes)
    memory = [_PLENTY * max(1, size) // most for size in sizes]
    return plan_shards(name, model, anatomy, devices, [Memory("no limit", each, each) for each in memory])


def split_evenly(name: str, model: nn.Module, anatomy: Anatomy, devices: Sequence[torch.device]) -> Shards:
    """As `plan_shards`, on devices that have the same memory, and plenty of it."""
    return split_by(name, model, anatomy, devices, [1] * len(devices))


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _one(devices: Sequence[torch.device]) -> str:
    return f"--device {devices[0]}"


def spread(name: str, model: Any, anatomy: Anatomy, devices: Sequence[torch.device]) -> Shards:
    """Move a model from CPU memory to several devices, and see that it computes there what it computed before.

    Raises InvalidInput for a model that cannot be spread, DoesNotFit.
    """
    shards = planned_now(name, model, anatomy, devices)
    before = _some_logits(model, torch.device("cpu"))
    place(model, anatomy, shards)
    try:
        after = _some_logits(model, shards.devices[0])
    except RuntimeError as error:
        if "same device" not in str(error):
            raise
        raise InvalidInput(
            f"{name} cannot lie on several devices: it computes with weights of two of them at once",
            hint=_one(devices),
        ) from error
    difference = 0.0 if torch.equal(before, after) else float((after - before).abs().max() / before.std())
    if not difference < _ROUNDING[model.dtype]:  # NaN is not
        raise InvalidInput(
            f"{name} cannot lie on several devices: its logits differ there by {difference:.2g} standard deviations",
            hint=_one(devices),
        )
    return shards


@torch.inference_mode()
def _some_logits(model: nn.Module, device: torch.device) -> Tensor:
    """Logits of three tokens, in CPU memory and in float64."""
    return logits_of(model, torch.tensor([[0, 1, 0]], device=device), None).cpu().double()


def place(model: Any, anatomy: Anatomy, shards: Shards) -> None:
    """Move each block to its device and all else to the first, and let blocks be given what they read on their device."""
    blocks = list(model.get_submodule(anatomy.blocks_path).children())
    of_module = {
        module: device for block, device in zip(blocks, shards.of_block, strict=True) for module in block.modules()
    }
    slots: dict[int, list[tuple[nn.Module, str]]] = {}  # where each parameter is used: a tied one stays one
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                slots.setdefault(id(parameter), []).append((module, leaf))
    for users in slots.values():
        check_cancelled()
        module, leaf = users[0]
        there = module.get_parameter(leaf).detach().to(of_module.get(module, shards.devices[0]))
        moved = nn.Parameter(there, requires_grad=module.get_parameter(leaf).requires_grad)
        for module, leaf in users:
            module._parameters[leaf] = moved
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = buffer.to(of_module.get(module, shards.devices[0]))
    skipped = getattr(model, "_skip_keys_device_placement", None)
    for block, device in zip(blocks, shards.of_block, strict=True):
        back = shards.devices[0] if block is blocks[-1] else None
        add_hook_to_module(block, _OnItsDevice(device, back, skipped))


class _OnItsDevice(ModelHook):  # type: ignore[misc]
    """Brings what a block is given to its device, inside of the block's call: who watches the call sees what it was given."""

    def __init__(self, device: torch.device, back: torch.device | None, skipped: object) -> None:
        self._device, self._back, self._skipped = device, back, skipped

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return send_to_device(args, self._device), send_to_device(kwargs, self._device, skip_keys=self._skipped)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return send_to_device(output, self._back) if self._back else output
