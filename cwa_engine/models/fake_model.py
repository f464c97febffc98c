"""A model without its weights: tensors that have a shape and no memory, run to count the bytes that would live at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.hub.sources import ModelSource
from cwa_engine.models.anatomy import anatomy_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.shards import Shards, place

_grouped_mm = getattr(torch, "_grouped_mm", None)  # of which earlier versions have none


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live tensors that were created inside this context; `peak` is the most at one time.

    `peaks` is the most on each device, which need not be at the same time.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """`known` are tensors from before; views of them are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.peaks: dict[torch.device, int] = {}
        self._live: dict[torch.device, int] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        check_cancelled()
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known and key not in self._sizes:
            size, device = storage.nbytes(), tensor.device
            self._sizes[key] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            self._live[device] = self._live.get(device, 0) + size
            self.peaks[device] = max(self.peaks.get(device, 0), self._live[device])
            weakref.finalize(storage, self._gone, key, device)

    def _gone(self, key: int, device: torch.device) -> None:
        size = self._sizes.pop(key, 0)
        self.live -= size
        self._live[device] -= size


@dataclass(frozen=True)
class FakeModel(LoadedModel):
    """A model whose tensors have a shape and no memory. It runs inside `running` only."""

    mode: FakeTensorMode = field(kw_only=True, repr=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Whatever runs the model goes inside."""
        with self.mode, _MadeUpDevices() if self.shards else nullcontext(), _GroupedProducts():
            yield


class _GroupedProducts(TorchFunctionMode):
    """Products of tokens with the matrices of their experts, by an operator that needs no values.

    PyTorch's own refuses float32 where tensors have no values. That of transformers makes the same tensors: as many rows
    as there are pairs of a token and its expert, and gradients of whole stacks.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function is _grouped_mm and given.get("bias") is None:
            return torch.ops.transformers.grouped_mm_fallback(*args[:2], offs=given["offs"])
        return function(*args, **given)


class _MadeUpDevices(TorchFunctionMode):
    """Puts tensors that are made from numbers where they are asked for: without values they would be on "cpu", not "cpu:1"."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        made = function(*args, **given)
        device = given.get("device")
        if function is torch.tensor and isinstance(device, torch.device) and device.index is not None:
            return torch.empty(made.shape, dtype=made.dtype, device=device)
        return made


def fake_model(
    source: ModelSource,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    shards: Shards | None = None,
) -> FakeModel:
    """The model of this config, without memory for its weights; with `shards` over as many devices that are made up.

    Steps that mix tensors of two of these raise as on real devices.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        make: Any = AutoModelForCausalLM.from_config
        model = make(config, dtype=dtype).eval()
    anatomy = anatomy_of(model)
    if shards:
        # Tensors without values can be on "cpu:1" as well as on "cuda:1", for which PyTorch would have to know CUDA.
        shards = shards.on([torch.device("cpu", number) for number in range(len(shards.devices))])
        with mode:
            place(model, anatomy, shards)
    return FakeModel(
        model=model,
        tokenizer=tokenizer,
        anatomy=anatomy,
        source=source,
        revision=None,
        files={},
        device=shards.devices[0] if shards else torch.device("cpu"),
        dtype=str(dtype).removeprefix("torch."),
        shards=shards,
        mode=mode,
    )


class _Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the steps of PyTorch inside this context."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def goes_token_by_token(fake: FakeModel) -> bool:
    """Whether the model takes more steps for more tokens, as Mamba does without its kernels. Two texts of 512 tokens and
    their gradients would then take minutes or hours."""

    def find() -> bool:
        few, many = _steps(fake, 4), _steps(fake, 16)
        return many > 1.5 * few

    return fake.facts.once("it goes token by token", find)


def _steps(fake: FakeModel, tokens: int) -> int:
    steps = _Steps()  # type: ignore[no-untyped-call]
    with fake.running(), torch.no_grad(), steps:
        fake.model(torch.zeros((1, tokens), dtype=torch.long, device=fake.device))
    return steps.count


def peak_bytes(fake: FakeModel, work: Callable[[], object]) -> int:
    """The peak of the bytes of live tensors during `work`, without weights and buffers; over several devices as `needed`."""
    own = [*fake.model.parameters(), *fake.model.buffers()]
    with fake.running(), LiveBytes(own) as counted:
        work()
    return fake.shards.needed(counted.peaks) if fake.shards else int(counted.peak)
