"""On an accelerator a run finds what it finds on a CPU, and rarely waits for the device. The accelerator is simulated."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.damage.patch import patched
from cwa_engine.methods.metrics import WeightStats
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.checksum import checksum
from cwa_engine.models.facts import Facts
from cwa_engine.models.loading import LoadedModel
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec
from tests.engine.conftest import fingerprint, wrap
from tests.models import tiny_model
from tests.simulated_gpu import move, simulated_gpu


def on(device: str, loaded: LoadedModel) -> LoadedModel:
    model = copy.deepcopy(loaded.model)
    move(model, device)
    return dataclasses.replace(loaded, model=model, device=torch.device(device), facts=Facts())


def tables(loaded: LoadedModel, spec: RunSpec) -> dict[str, list[dict[str, str]]]:
    found = dict(run_tables(analyze(loaded, spec)))
    return {name: list(csv.DictReader(io.StringIO(content.decode()))) for name, content in found.items()}


def agree(cell: str, other: str) -> bool:
    """Equal but for the rounding of another order of additions."""
    try:
        return float(cell) == pytest.approx(float(other), rel=1e-3, abs=1e-6, nan_ok=True)
    except ValueError:
        return cell == other


@pytest.mark.parametrize(
    ("kind", "name", "gradients", "metrics"),
    [
        ("cuda", "llama", "sweep", ("grad_x_weight", "grad_squared", "obs")),
        ("mps", "gpt2", "resident", ("taylor", "obs", "super_weight")),
    ],
)
def test_a_run_on_a_device_gives_the_tables_of_a_run_on_the_cpu(
    kind: str, name: str, gradients: Any, metrics: tuple[str, ...], data_file: Path
) -> None:
    spec = RunSpec(
        model="tiny", data_file=data_file, topk=(3,), metrics=metrics, controls=("random",), control_seeds=1, seq_len=24,
        gradients=gradients, batch_size=2, kl=True, perturbations=("zero", "gaussian_noise"), matrices=False,
    )  # fmt: skip
    loaded = wrap(tiny_model(name))
    here = tables(loaded, spec)
    with simulated_gpu(kind):
        model = on(f"{kind}:0", loaded)
        before = checksum(model.model)
        there = tables(model, spec)
        assert checksum(model.model) == before == checksum(loaded.model)
    assert there.keys() == here.keys()
    for table, rows in here.items():
        for row, other in zip(rows, there[table], strict=True):
            unlike = {column: (row[column], other[column]) for column in row if not agree(row[column], other[column])}
            assert not unlike, (table, unlike)


def test_an_operation_over_two_devices_would_be_noticed() -> None:
    with simulated_gpu() as gpu:
        near, far = (torch.ones(3, device=device) for device in ("cuda:0", "cuda:1"))
        with pytest.raises(RuntimeError, match="several devices"):
            near + far
        with pytest.raises(RuntimeError, match=r"cuda:0.*cpu"):
            near + torch.ones(3)
        assert float((near + 1).sum()) == 6
        assert gpu.waits.total() == 1


def test_to_rank_a_large_matrix_a_device_is_waited_for_a_few_times() -> None:
    """In pieces that fit a processor's cache it would be sixteen times as many."""
    wide: Any = tiny_model("llama")
    wide.lm_head = torch.nn.Linear(32, 2**19, bias=False)
    loaded = wrap(wide).with_parameters(["lm_head.weight"])
    gradient = torch.randn(2**19, 32, generator=torch.Generator().manual_seed(0))
    expected = rank(loaded, {"lm_head.weight": WeightStats(gradient=gradient)}, "grad_x_weight", 100)
    with simulated_gpu() as gpu:
        there = on("cuda:0", loaded)
        statistics = {"lm_head.weight": WeightStats(gradient=gradient.to("cuda:0"))}
        gpu.waits.clear()
        ranked = rank(there, statistics, "grad_x_weight", 100)
        waited = gpu.waits.total() - 3 * 100  # three for each row that is described
    assert [row.target for row in ranked.weights] == [row.target for row in expected.weights]
    assert waited <= 12


def test_however_many_parameters_are_edited_a_device_is_waited_for_once_to_write_and_once_to_undo() -> None:
    loaded = wrap(tiny_model("llama"))
    selection = {name: torch.tensor([0, 1]) for name in loaded.anatomy.parameters}
    with simulated_gpu() as gpu:
        model = on("cuda:0", loaded).model
        before = checksum(model)
        gpu.waits.clear()
        with patched(model, selection, PERTURBATIONS["zero"]):  # type: ignore[arg-type]
            brought = gpu.waits.pop("copy")
        assert brought <= len(selection) + 1  # the places, and the answer
        assert gpu.waits.total() == 1
        assert checksum(model) == before


def test_a_checksum_waits_for_a_device_once_and_is_that_of_the_cpu() -> None:
    loaded = wrap(tiny_model("gpt2"))
    with simulated_gpu() as gpu:
        model = on("cuda:0", loaded).model
        gpu.waits.clear()
        found = checksum(model)
        assert gpu.waits.total() == 1
    assert found == checksum(loaded.model)
    assert fingerprint(loaded.model)
