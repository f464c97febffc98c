"""A model that is larger than its device is analysed block by block, and what is found is the same."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.base.errors import InvalidInput
from cwa_engine.models.facts import Facts
from cwa_engine.models.fake_model import LiveBytes
from cwa_engine.models.loading import load_model
from cwa_engine.models.offload import Offload
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture
from tests.engine.conftest import fingerprint, wrap
from tests.models import save_tiny


class SmallDevice(Offload):
    """Part of the CPU's memory plays a device: what is brought there is copied and counted, with all that is made there."""

    def __init__(self, model: Any, blocks: list[Any]) -> None:
        super().__init__(model, blocks, torch.device("cpu"))
        inside = [tensor for block in blocks for tensor in (*block.parameters(), *block.buffers())]
        self.counted = LiveBytes(inside)
        outside = {id(tensor) for tensor in model.parameters()} - {id(tensor) for tensor in inside}
        self.resting = sum(p.nbytes for p in model.parameters() if id(p) in outside)
        self.brought = 0

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        self.brought += 1
        return tensor.clone()

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            copied = tensor.clone()
        storage = copied.untyped_storage()
        self.counted._known.add(storage._cdata)
        weakref.finalize(storage, self.counted._known.discard, storage._cdata)
        return copied


@pytest.fixture
def deep() -> Any:
    """A LLaMA of sixteen blocks, which have nearly all of its weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=192, num_hidden_layers=16, num_attention_heads=2
    )
    return wrap(transformers.AutoModelForCausalLM.from_config(config).eval())


def offloaded(loaded: Any) -> tuple[Any, SmallDevice]:
    model = copy.deepcopy(loaded.model)
    device = SmallDevice(model, list(model.get_submodule(loaded.anatomy.blocks_path).children()))
    return dataclasses.replace(loaded, model=model, offload=device, facts=Facts()), device


def everything(data_file: Path, **fields: Any) -> RunSpec:
    return RunSpec(
        model="tiny", data_file=data_file, topk=(3,), metrics=("grad_x_weight", "taylor", "wanda"), individually=True,
        control_seeds=1, seq_len=24, **fields,
    )  # fmt: skip


def test_the_result_is_that_of_a_model_that_fits_and_the_device_holds_less_than_the_weights(
    deep: Any, data_file: Path
) -> None:
    whole = analyze(deep, everything(data_file, gradients="sweep"))
    model, device = offloaded(deep)
    before = fingerprint(model.model)
    with device.counted:
        found = analyze(model, everything(data_file, offload="cpu"))
    assert dict(run_tables(found)) == dict(run_tables(whole))
    assert fingerprint(model.model) == before
    block = sum(p.nbytes for p in deep.model.model.layers[0].parameters())
    counts = 8 * 2**12 * 3 * 2  # of scores: int64 in 4,096 bins, for three metrics and two rankings
    assert device.resting + device.counted.peak - counts < 12 * block < deep.size_bytes
    assert device.counted.live < block


def test_the_same_budget_is_not_enough_without_offload(deep: Any, data_file: Path) -> None:
    counted = LiveBytes(deep.model.parameters())
    with counted:
        analyze(deep, everything(data_file, gradients="resident"))
    block = sum(p.nbytes for p in deep.model.model.layers[0].parameters())
    assert deep.size_bytes + counted.peak > 8 * block


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "opt", "gpt_oss"])
def test_other_architectures_are_found_the_same_when_offloaded(model_type: str, data_file: Path) -> None:
    loaded = wrap(tiny_architecture(model_type))
    whole = dict(run_tables(analyze(loaded, everything(data_file, gradients="sweep"))))
    model, device = offloaded(loaded)
    assert dict(run_tables(analyze(model, everything(data_file, offload="cpu")))) == whole
    assert device.brought


def test_an_interrupted_run_leaves_every_block_at_home(deep: Any, data_file: Path) -> None:
    model, _ = offloaded(deep)
    home = {name: parameter.data_ptr() for name, parameter in model.model.named_parameters()}

    def interrupt(event: Any) -> Iterator[None]:
        if event.kind == "progress" and event.stage == "score" and event.done == 3:
            raise KeyboardInterrupt
        return iter(())

    with pytest.raises(KeyboardInterrupt):
        analyze(model, everything(data_file, offload="cpu"), interrupt)  # type: ignore[arg-type]
    assert {name: parameter.data_ptr() for name, parameter in model.model.named_parameters()} == home


def test_a_model_loaded_with_offload_is_analysed_from_its_files(tmp_path: Path, data_file: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    plain, placed = load_model(str(folder)), load_model(str(folder), offload=True)
    assert placed.offload and not plain.offload
    asked = everything(data_file, offload="cpu")
    assert dict(run_tables(analyze(placed, asked))) == dict(run_tables(analyze(plain, everything(data_file))))


def test_what_offload_cannot_do_is_said(data_file: Path) -> None:
    with pytest.raises(InvalidInput, match="one block at a time"):
        RunSpec(model="tiny", offload="cpu", gradients="resident")
    with pytest.raises(InvalidInput, match="all weights at once") as refused:
        RunSpec(model="tiny", offload="cpu", fidelity=20)
    assert refused.value.hint == "leave out --offload cpu"
    with pytest.raises(InvalidInput, match="cannot be analysed block by block: a block does not give a hidden state"):
        analyze(wrap(tiny_architecture("openai-gpt")), everything(data_file, offload="cpu"))
