"""On a GPU: float32 that is float32, and the same numbers each time.

By itself a GPU is free to do otherwise. Matrices in float32 are multiplied with ten bits of mantissa where TF32 is on, as it
is by default in NVIDIA's containers (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1); convolutions are by default everywhere; and sums
in bfloat16 may be rounded on the way. Some kernels add in whatever order their threads end, the backward pass of attention
for one, so that a run differs from its repetition. A CPU is repeatable by itself; there, too, float32 is bfloat16 after
`torch.set_float32_matmul_precision("medium")` where the processor has such products.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch.nn.functional import cross_entropy
from torch.utils import deterministic

from cwa_engine.base.errors import RunFailed
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel

# What cuBLAS asks for before it promises equal results; it reads this once, when it is first used.
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
os.environ.update({name: value for name, value in WORKSPACE.items() if name not in os.environ})

_FACT = "no repeatable kernel"
_SIGNS = ("deterministic implementation", "not deterministic because it uses CuBLAS")

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def exact_kernels(loaded: LoadedModel, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Let the model's device compute in full precision and repeatably; afterwards everything is set as before.

    `say` hears what a reader of results must know: which operation of the model this cannot be demanded of. Raises RunFailed
    where that turns out on the way, after which it is not demanded of the model again.
    """
    with ExitStack() as before:
        _set_precision(before)
        if loaded.device.type == "cpu":  # which is repeatable by itself
            yield
            return
        refused = _refused(loaded)
        if refused:
            say(
                f"not every kernel of this model is repeatable on {loaded.device}: {refused}; losses and scores may differ in "
                "their last digits from one run to the next, and by the numerical floor within a run"
            )
        _set_repeatable(before, warn_only=bool(refused))
        try:
            yield
        except RuntimeError as error:
            if not (found := _refusal(error)):
                raise
            loaded.facts.set(_FACT, found)
            raise RunFailed(
                f"the model uses an operation that has no repeatable kernel on {loaded.device}: {found}",
                hint="run it again: while this model is warm it is computed without that demand",
            ) from error


def with_exact_kernels(compute: Callable[Concatenate[LoadedModel, P], T]) -> Callable[Concatenate[LoadedModel, P], T]:
    """The same function, in `exact_kernels` of the model that it is given."""

    @wraps(compute)
    def exactly(loaded: LoadedModel, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with exact_kernels(loaded):
            return compute(loaded, *args, **kwargs)

    return exactly


def _set_precision(before: ExitStack) -> None:
    """Full float32 products and sums, until `before` is closed.

    torch has two interfaces for this, and raises where they disagree: both are set, and both are put back.
    """
    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    named: list[Any] = [matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]
    for place in named:
        before.callback(setattr, place, "fp32_precision", place.fp32_precision)
    with suppress(RuntimeError):  # they disagree
        before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    with suppress(RuntimeError):
        before.callback(setattr, cudnn, "allow_tf32", cudnn.allow_tf32)
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    for place in named:
        place.fp32_precision = "ieee"
    for name in (
        "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction", "allow_fp16_accumulation",
    ):  # fmt: skip
        _set(before, matmul, name, False)


def _set_repeatable(before: ExitStack, warn_only: bool) -> None:
    """Kernels that give the same each time, until `before` is closed; with `warn_only` where there are any."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before.callback(torch.use_deterministic_algorithms, was[0], warn_only=was[1])
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    _set(before, torch.backends.cudnn, "benchmark", False)  # which takes whatever kernel was fastest this time
    _set(before, deterministic, "fill_uninitialized_memory", False)  # a pass over memory that finds nothing out


def _set(before: ExitStack, place: Any, name: str, value: object) -> None:
    before.callback(setattr, place, name, getattr(place, name))
    setattr(place, name, value)


def _refused(loaded: LoadedModel) -> str:
    """The operation of a model that has no repeatable kernel here; empty where all have. Tried once for each model.

    Two texts, one of them padded, go forward and back. The blocks of an offloaded model would all be on the device for that,
    so they only go forward.
    """

    def find() -> str:
        try:
            with ExitStack() as before:
                _set_repeatable(before, warn_only=False)
                _try(loaded)
        except RuntimeError as error:
            if found := _refusal(error):
                return found
            raise
        return ""

    return loaded.facts.once(_FACT, find)


def _try(loaded: LoadedModel) -> None:
    ids = torch.tensor([[0, 1, 0], [1, 0, 0]], device=loaded.device)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], device=loaded.device)
    wanted = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    with torch.inference_mode(False), torch.set_grad_enabled(not loaded.offload):
        loss = cross_entropy(logits_of(loaded.model, ids, mask)[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        if loss.requires_grad:
            torch.autograd.grad(loss, wanted, allow_unused=True)


def _refusal(error: RuntimeError) -> str:
    """What an error says about an operation without a repeatable kernel; empty for any other error."""
    said = str(error).strip().partition("\n")[0]
    return said.partition(",")[0] if any(sign in said for sign in _SIGNS) else ""
