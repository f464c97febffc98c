"""A simulated accelerator on a machine that has none: tensors with real values that say they are on "cuda:N" or "mps:0".

Their numbers are computed by the CPU, so that results can be compared with those of a CPU. What a real accelerator refuses
is refused: operations over two devices, float64 on Apple's. What costs there is counted: kernels, and synchronisations,
where the program waits for all that it has asked of the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

# Operations whose result the program needs to go on, by their own definition.
_WAITS = {
    aten._local_scalar_dense.default,  # float(), int(), bool(), item()
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.bincount.default,
    aten.unique_dim.default,
    aten._unique2.default,
    aten.is_nonzero.default,
}
_INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
}  # by a mask they wait, by numbers they do not
_NO_KERNEL = {aten.detach.default, aten.alias.default}


class DeviceTensor(Tensor):
    """A tensor on the simulated device; `numbers` are its values, on the CPU.

    To the C++ of torch it is on the CPU, so that autograd has a queue for it; whatever Python sees says where it really is.
    """

    numbers: Tensor
    _where: torch.device

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device, requires_grad: bool = False) -> DeviceTensor:
        with torch.inference_mode(values.is_inference()):
            made: Any = Tensor._make_wrapper_subclass(
                cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(),
                dtype=values.dtype, device=torch.device("cpu"), requires_grad=requires_grad,
            )  # fmt: skip
        made.numbers, made._where = values, device
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._where

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """C++ would find nothing to do where the CPU is asked for."""
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype)
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        device = _numbered(device or self.device)
        if device == self.device and (dtype or self.dtype) == self.dtype and not copy:
            return self
        if device != self.device and torch.is_grad_enabled() and self.requires_grad:
            crossed: Tensor = _Crossed.apply(self, dtype, device)
            return crossed
        moved: Tensor = torch.ops.aten._to_copy.default(self, dtype=dtype, device=device)
        return moved

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor on a device cannot be converted to numpy; .cpu() copies it")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.numbers}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{func} is called outside of the simulation")


class _Crossed(torch.autograd.Function):
    """From one device to another, and the gradient back: C++ would find both on the CPU, and leave the gradient there."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        context.back = tensor.dtype, tensor.device
        moved: Tensor = torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=device)
        return moved

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        dtype, device = context.back
        return torch.ops.aten._to_copy.default(gradients[0], dtype=dtype, device=device), None, None


class SimulatedGpu(TorchDispatchMode):
    """While it is entered, tensors can be made on, moved to and computed on devices of one kind, "cuda" or "mps"."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inside = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        made_on = kwargs.get("device")
        made_on = torch.device(made_on) if made_on is not None else None
        if not inside and (made_on is None or made_on.type != self._kind):
            return function(*args, **kwargs)
        if _is_made_of_others(function):  # as under `inference_mode`
            with self:
                return function.decompose(*args, **kwargs)
        devices = {tensor.device for tensor in inside}
        if len(devices) > 1 and function is not aten.copy_.default:
            raise RuntimeError(f"{function} over several devices: {sorted(map(str, devices))}")
        if function in (aten._to_copy.default, aten.copy_.default):
            return self._copied(function, args, kwargs, made_on)
        device = next(iter(devices), made_on)
        assert device is not None
        outside = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim()]
        if outside and function not in _INDEXED:  # an index may be on the CPU, and is brought
            raise RuntimeError(f"{function} over {device} and {outside[0].device}")
        self._count(function, args, bool(outside))
        if made_on is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if function is aten.histc.default:  # which counts integers on a GPU alone
            args = (args[0].numbers.float(), *args[1:])
        with torch.inference_mode(False), torch.no_grad():
            result = function(*tree_map(_values, args), **tree_map(_values, kwargs))
        self._check(function, result)
        mine = {id(tensor.numbers): tensor for tensor in inside}
        return tree_map(lambda leaf: _on(leaf, device, mine), result)

    def _check(self, function: Any, result: Any) -> None:
        if self._kind == "mps" and any(isinstance(r, Tensor) and r.dtype is torch.float64 for r in tree_leaves(result)):
            raise TypeError(f"{function}: an mps device has no float64")

    def _count(self, function: Any, args: Any, brings: bool) -> None:
        name = str(function)
        if function not in _NO_KERNEL and not _is_view(function):
            self.kernels[name] += 1
        by_mask = function in _INDEXED and any(
            isinstance(leaf, Tensor) and leaf.dtype is torch.bool for leaf in tree_leaves(args[1])
        )
        if function in _WAITS or by_mask or (brings and function in _INDEXED):
            self.waits[name] += 1

    def _copied(self, function: Any, args: Any, kwargs: Any, made_on: torch.device | None) -> Any:
        """Between devices: each such copy of pageable memory is a synchronisation."""
        if function is aten.copy_.default:
            target, source = args[0], args[1]
            if isinstance(target, DeviceTensor) != isinstance(source, DeviceTensor) and source.dim():
                self.waits["copy"] += 1
            with torch.inference_mode(False), torch.no_grad():
                _values(target).copy_(_values(source))
            return target
        source, options = args[0], {name: value for name, value in kwargs.items() if name != "device"}
        here = source.device if isinstance(source, DeviceTensor) else torch.device("cpu")
        to = made_on or here
        with torch.inference_mode(False), torch.no_grad():
            copied = _values(source).to(options.get("dtype") or source.dtype, copy=True)
        if to.type == self._kind:
            self._check(function, copied)
        if to.type != here.type:
            self.waits["copy"] += 1
        else:
            self.kernels["copy"] += 1
        return DeviceTensor(copied, _numbered(to)) if to.type == self._kind else copied


def _values(leaf: Any) -> Any:
    return leaf.numbers if isinstance(leaf, DeviceTensor) else leaf


def _on(leaf: Any, device: torch.device, mine: dict[int, DeviceTensor]) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, DeviceTensor):
        return leaf
    return mine[id(leaf)] if id(leaf) in mine else DeviceTensor(leaf, _numbered(device))


def _numbered(device: torch.device) -> torch.device:
    return device if device.index is not None else torch.device(device.type, 0)


@cache
def _is_view(function: Any) -> bool:
    return any(argument.alias_info and not argument.alias_info.is_write for argument in function._schema.arguments)


@cache
def _is_made_of_others(function: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"))


def move(model: nn.Module, device: str) -> None:
    """Move a model's weights and buffers there, tied ones together."""
    moved: dict[int, Tensor] = {}

    def there(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            made: Tensor = DeviceTensor(tensor.detach().clone(), torch.device(device))
            moved[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
        return moved[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = there(parameter)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = there(buffer)


@contextmanager
def simulated_gpu(kind: str = "cuda", free_bytes: int = 80 * 10**9) -> Iterator[SimulatedGpu]:
    """Enter the simulation of devices with so much free memory each; gives what counts kernels and synchronisations."""
    answers = {
        "_lazy_init": lambda: None,
        "mem_get_info": lambda device=None: (free_bytes, 80 * 10**9),
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "get_device_name": lambda device=None: "simulated",
    }
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=)` makes it on the CPU, and then moves it
    try:
        with ExitStack() as patches:
            for name, answer in answers.items():
                patches.enter_context(patch.object(torch.cuda, name, answer))
            with SimulatedGpu(kind) as gpu:
                yield gpu
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
