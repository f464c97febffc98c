"""What is promised of numbers on a GPU, and what is said where it cannot be promised. The GPU is simulated."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_daemon.worker.executor import is_device_error
from cwa_engine.base.cancellation import cancellable
from cwa_engine.base.errors import RunFailed, WeightsNotRestored
from cwa_engine.damage import measurement
from cwa_engine.models.determinism import WORKSPACE, exact_kernels
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.forward import cancel_between_blocks, logits_of
from cwa_engine.models.memory import free_bytes
from cwa_engine.pipeline import analyze
from cwa_engine.spec import RunSpec
from tests.engine.conftest import wrap
from tests.engine.test_on_a_gpu import on
from tests.models import tiny_model
from tests.simulated_gpu import simulated_gpu

MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
SETTINGS: dict[str, Callable[[], object]] = {
    "TF32 of matrices": lambda: MATMUL.allow_tf32,
    "its new name": lambda: MATMUL.fp32_precision,
    "its third name": torch.get_float32_matmul_precision,
    "of a CPU": lambda: torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    "of convolutions": lambda: CUDNN.conv.fp32_precision,  # type: ignore[attr-defined]
    "of both kinds": lambda: CUDNN.allow_tf32,
    "sums in bfloat16": lambda: MATMUL.allow_bf16_reduced_precision_reduction,
    "sums in float16": lambda: MATMUL.allow_fp16_reduced_precision_reduction,
    "repeatable kernels": torch.are_deterministic_algorithms_enabled,
    "or else a warning": torch.is_deterministic_algorithms_warn_only_enabled,
    "the fastest kernel": lambda: CUDNN.benchmark,
}


def settings() -> dict[str, object]:
    found: dict[str, object] = {}
    for name, read in SETTINGS.items():
        try:
            found[name] = read()
        except RuntimeError as error:  # torch's two interfaces disagree
            found[name] = str(error)[:20]
    return found


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """The process's settings are put back, whatever a test sets."""
    with ExitStack() as before:
        cpu = torch.backends.mkldnn
        for place in (MATMUL, CUDNN.conv, CUDNN.rnn, cpu.matmul, cpu.conv, cpu.rnn):  # type: ignore[attr-defined]
            before.callback(setattr, place, "fp32_precision", place.fp32_precision)
        before.callback(setattr, CUDNN, "allow_tf32", CUDNN.allow_tf32)
        before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        yield


@pytest.mark.parametrize(
    "as_set_by_a_program",
    [
        lambda: None,
        lambda: setattr(MATMUL, "allow_tf32", True),  # as NVIDIA's containers have it
        lambda: setattr(MATMUL, "fp32_precision", "tf32"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ],
)
def test_a_gpu_computes_in_full_precision_and_repeatably_and_a_program_has_its_settings_back(
    as_set_by_a_program: Callable[[], None], torch_as_it_was: None
) -> None:
    llama = wrap(tiny_model("llama"))
    try:
        as_set_by_a_program()
        before = settings()
        with exact_kernels(llama):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]
            assert settings()["repeatable kernels"] == before["repeatable kernels"]  # a CPU is, by itself
        assert settings() == before
        with simulated_gpu():
            there = on("cuda:0", llama)
            with pytest.raises(KeyError), exact_kernels(there):
                inside = settings()
                raise KeyError("whatever happens")
        assert settings() == before
    finally:
        torch.use_deterministic_algorithms(False)
    assert inside.pop("repeatable kernels") is True
    assert inside.pop("its new name") == inside.pop("of convolutions") == inside.pop("of a CPU") == "ieee"
    assert inside.pop("its third name") == "highest"
    assert not any(inside.values()), inside


def test_what_cublas_needs_to_be_repeatable_is_set_before_it_is_used() -> None:
    import os

    assert all(os.environ[name] for name in WORKSPACE)


def refusing_beyond(tokens: int) -> Callable[..., None]:
    """What a module does that has no repeatable kernel: it computes, unless that is demanded."""

    def hook(module: object, args: tuple[Any, ...], output: torch.Tensor) -> None:
        demanded = torch.are_deterministic_algorithms_enabled()
        if demanded and not torch.is_deterministic_algorithms_warn_only_enabled() and output.shape[1] > tokens:
            raise RuntimeError(
                "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
                "'torch.use_deterministic_algorithms(True)'. You can turn off determinism"
            )

    return hook


@pytest.fixture
def short(data_file: Path) -> RunSpec:
    return RunSpec(
        model="tiny", data_file=data_file, topk=(2,), controls=("random",), control_seeds=1, seq_len=16, matrices=False,
        gradients="sweep", batch_size=4,
    )  # fmt: skip


def noisy(module: object, args: object, output: Any) -> Any:
    """Kernels that round in another order each time."""
    return output + torch.tensor(1e-4, device=output.device) * torch.randn(output.shape).to(output.device)


def test_a_model_without_repeatable_kernels_is_analysed_and_what_that_means_is_said(short: RunSpec) -> None:
    notes: list[str] = []
    with simulated_gpu():
        there = on("cuda:0", wrap(tiny_model("llama")))
        there.model.model.norm.register_forward_hook(refusing_beyond(0))
        there.model.lm_head.register_forward_hook(noisy)
        result = analyze(there, short, lambda event: notes.append(getattr(event, "text", "")))
    assert any("cumsum_cuda_kernel does not have a deterministic implementation" in note for note in notes)
    assert any("though every bit of its weights is as before" in note for note in notes)
    assert result.floor and abs(result.floor.repeat) > measurement.DRIFT_LIMIT


def test_a_weight_that_is_not_restored_is_no_matter_of_kernels(short: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    check = measurement.check_restored

    def after_a_slip(context: Any, *others: Any) -> Any:
        with torch.no_grad():
            context.loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(1.5)
        return check(context, *others)

    monkeypatch.setattr("cwa_engine.pipeline.check_restored", after_a_slip)
    with simulated_gpu():
        there = on("cuda:0", wrap(tiny_model("llama")))
        with pytest.raises(WeightsNotRestored, match="after all edits were undone"):
            analyze(there, short)


def test_where_it_turns_out_on_the_way_the_next_run_goes_without(short: RunSpec) -> None:
    notes: list[str] = []
    with simulated_gpu():
        there = on("cuda:0", wrap(tiny_model("llama")))
        there.model.model.norm.register_forward_hook(refusing_beyond(3))  # which the trial does not reach
        with pytest.raises(RunFailed, match="no repeatable kernel on cuda:0: cumsum") as failed:
            analyze(there, short)
        assert failed.value.hint and "run it again" in failed.value.hint
        analyze(there, short, lambda event: notes.append(getattr(event, "text", "")))
    assert any(note.startswith("not every kernel of this model is repeatable on cuda:0: cumsum") for note in notes)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_full_device_is_told_from_a_broken_one() -> None:
    full = [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ]
    assert all(is_out_of_memory(error) and not is_device_error(error) for error in full)
    broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert is_device_error(broken) and not is_out_of_memory(broken)


def test_what_torch_holds_unused_on_a_device_is_free_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu(free_bytes=10**9):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 10**9)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * 10**9)
        assert free_bytes(torch.device("cuda:0")) == 4 * 10**9


def test_a_cancelled_run_ends_in_a_backward_pass_in_another_thread() -> None:
    """On a GPU that is where it is: autograd has a thread for each device."""
    model = tiny_model("llama")
    cancel_between_blocks(model)
    checked: list[str] = []
    with cancellable(lambda: checked.append(threading.current_thread().name)):
        loss = logits_of(model, torch.tensor([[5, 6, 7]]), None).sum()
        backward = threading.Thread(target=loss.backward, name="of the device")
        backward.start()
        backward.join()
    assert "of the device" in checked
