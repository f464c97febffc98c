"""On a real device: exact undo, the top-k of a CPU, repeatable runs, offload, and what happens when memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base.events import Note
from cwa_engine.damage.patch import patched
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.checksum import checksum
from cwa_engine.models.determinism import exact_kernels
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.result import RunResult
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from tests.engine.test_evaluation import sequences_of
from tests.models import tiny_tokenizer

pytestmark = pytest.mark.gpu

METRICS = ("grad_x_weight", "grad_squared", "taylor", "wanda")
IDS = [[5, 6, 7, 8]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of eight blocks and four million weights, whose attention has a size that fused kernels take."""
    import transformers

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def loaded_on(device: str, folder: Path, dtype: str = "float32", offload: bool = False) -> LoadedModel:
    return load_model(str(folder), dtype=dtype, device=device, offload=offload)


def asked(folder: Path, data_file: Path, **fields: Any) -> RunSpec:
    return RunSpec(
        model=str(folder), data_file=data_file, topk=(20,), metrics=METRICS, control_seeds=2, seq_len=32,
        **{"batch_size": 4, "gradients": "sweep", **fields},
    )  # fmt: skip


def analysed(loaded: LoadedModel, spec: RunSpec) -> tuple[RunResult, list[str]]:
    notes: list[str] = []

    def hear(event: Any) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return analyze(loaded, spec, hear), notes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("how", sorted(PERTURBATIONS))
def test_edits_of_every_kind_are_undone_bit_for_bit(device: str, folder: Path, dtype: str, how: str) -> None:
    model = loaded_on(device, folder, dtype).model
    before = checksum(model)
    chosen = {name: np.arange(0, parameter.numel(), 97) for name, parameter in model.named_parameters()}
    with patched(model, chosen, PERTURBATIONS[how]):
        assert how == "none" or checksum(model) != before
    assert checksum(model) == before


def test_a_checksum_is_that_of_the_same_weights_on_a_cpu(device: str, folder: Path) -> None:
    assert checksum(loaded_on(device, folder).model) == checksum(loaded_on("cpu", folder).model)


@pytest.mark.parametrize("gradients", ["sweep", "resident"])
def test_the_first_weights_are_those_of_a_run_on_a_cpu(
    device: str, folder: Path, data_file: Path, gradients: str
) -> None:
    spec = asked(folder, data_file, gradients=gradients)
    here, _ = analysed(loaded_on("cpu", folder), spec)
    there, _ = analysed(loaded_on(device, folder), spec)
    for ours, theirs in zip(here.rankings, there.rankings, strict=True):
        scores = {row.target: row.score for row in theirs.weights}
        last = ours.weights[-1].score or 0.0
        for row in ours.weights:
            if (row.score or 0.0) > 1.001 * last:  # nearer to the last place rounding decides
                assert scores[row.target] == pytest.approx(row.score, rel=1e-3), (ours.metric, row.target)
    for one, two in zip(here.damage, there.damage, strict=True):
        assert two.nll == pytest.approx(one.nll, rel=1e-4)


def test_the_sweep_gives_the_statistics_of_all_weights_at_once(device: str, folder: Path) -> None:
    loaded = loaded_on(device, folder)
    sequences, needs = sequences_of(loaded), Needs.GRADIENT | Needs.FISHER
    with exact_kernels(loaded):
        whole = resident(loaded, sequences, needs, 2)
        swept = {name: stats for part in sweep(loaded, sequences, needs, 2) for name, stats in part.items()}
    assert swept.keys() == whole.keys()
    for name, stats in whole.items():
        for field in ("gradient", "fisher"):
            one, two = getattr(stats, field), getattr(swept[name], field)
            assert float((one - two).abs().max()) <= 1e-5 * float(one.abs().max()), (name, field)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_run_twice_gives_the_same_files(device: str, folder: Path, data_file: Path, dtype: str) -> None:
    loaded = loaded_on(device, folder, dtype)
    spec = asked(folder, data_file, batch_size=3)  # with padding
    (first, notes), (second, _) = analysed(loaded, spec), analysed(loaded, spec)
    assert not any("repeatable" in note for note in notes)
    assert dict(run_tables(first)) == dict(run_tables(second))
    assert first.floor and first.floor == second.floor


def test_a_model_with_its_blocks_in_cpu_memory_gives_the_same_files(device: str, folder: Path, data_file: Path) -> None:
    whole, _ = analysed(loaded_on(device, folder), asked(folder, data_file))
    placed = loaded_on(device, folder, offload=True)
    before = checksum(placed.model)
    found, _ = analysed(placed, asked(folder, data_file, offload="cpu"))
    assert dict(run_tables(found)) == dict(run_tables(whole))
    assert checksum(placed.model) == before
    blocks = placed.model.get_submodule(placed.anatomy.blocks_path)
    assert {parameter.device.type for parameter in blocks.parameters()} == {"cpu"}


def test_an_edit_beside_copies_that_are_under_way_counts_in_the_passes_after_it_alone(
    device: str, folder: Path
) -> None:
    """Nothing waits between the passes and the edits but what offload itself waits for."""
    plain, placed = loaded_on(device, folder), loaded_on(device, folder, offload=True)
    ids = torch.tensor(IDS, device=device)
    chosen = {name: np.arange(500) for name in plain.anatomy.parameters if name.endswith("down_proj.weight")}

    def logits(loaded: LoadedModel) -> list[torch.Tensor]:
        found = []
        with torch.inference_mode(), exact_kernels(loaded):
            for _ in range(20):
                found.append(logits_of(loaded.model, ids, None))
                with patched(loaded.model, chosen, PERTURBATIONS["zero"]):
                    found.append(logits_of(loaded.model, ids, None))
        return found

    assert all(torch.equal(one, two) for one, two in zip(logits(plain), logits(placed), strict=True))


def test_float32_is_float32_whatever_a_program_has_set(device: str, folder: Path) -> None:
    loaded = loaded_on(device, folder)
    one = torch.randn(512, 512, generator=torch.Generator().manual_seed(1))
    exact = one.double() @ one.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_kernels(loaded):
            product = (one.to(device) @ one.to(device)).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    assert float((product - exact).abs().max() / exact.abs().max()) < 1e-6  # TF32 errs by 1e-3 of each product


def test_where_memory_runs_out_fewer_texts_go_at_once_and_the_model_is_as_before(device: str, folder: Path) -> None:
    if not device.startswith("cuda"):
        pytest.skip("this device's memory is that of the machine")
    loaded = loaded_on(device, folder)
    before, said = checksum(loaded.model), list[str]()
    _, total = torch.cuda.mem_get_info(device)

    def work(size: int) -> torch.Tensor:
        room = torch.empty(total // 4 * size, dtype=torch.uint8, device=device)
        return logits_of(loaded.model, torch.tensor(IDS * size, device=device), None) + room[:1]

    sizes = BatchSize(8, said.append)
    assert sizes.run(work).isfinite().all()
    assert sizes.size < 8 and said[0].startswith("out of memory with 8 sequences at once")
    assert checksum(loaded.model) == before


def test_a_device_that_has_failed_is_told_from_a_full_one(device: str) -> None:
    if not device.startswith("cuda"):
        pytest.skip("a CPU does not fail like this")
    program = (
        "import sys, torch\n"
        "from cwa_daemon.worker.executor import is_device_error\n"
        "from cwa_engine.models.failures import is_out_of_memory\n"
        "try:\n"
        f"    torch.zeros(4, device='{device}')[torch.tensor([9], device='{device}')].cpu()\n"
        "except RuntimeError as error:\n"
        "    sys.exit(0 if is_device_error(error) and not is_out_of_memory(error) else 3)\n"
        "sys.exit(4)\n"
    )
    # In a process of its own: nothing more can be computed in it.
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
