"""A model that is larger than its device is analysed block by block, and what is found is the same."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base.errors import InvalidInput
from cwa_engine.damage.patch import patched
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.facts import Facts
from cwa_engine.models.fake_model import LiveBytes
from cwa_engine.models.forward import logits_of
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


class LateCopies:
    """Copies that a device makes as late as it may, when they are needed; they read CPU memory until `finish`."""

    def __init__(self, device: WatchedDevice, tensors: Sequence[torch.Tensor]) -> None:
        self._device, self._tensors = device, tensors
        self._of = device.block_of(tensors)
        device.log.append(f"send {self._of}")

    def ready(self) -> Sequence[torch.Tensor]:
        self._device.log.append(f"ready {self._of}")
        return [tensor.clone() for tensor in self._tensors]

    def finish(self) -> None:
        away = self._device.blocks[self._of].parameters()
        assert all(one.data_ptr() != two.data_ptr() for one, two in zip(away, self._tensors, strict=False))
        self._device.log.append(f"finish {self._of}")


class WatchedDevice(Offload):
    """A device whose copies are late, and which remembers what happened in which order."""

    def __init__(self, model: Any, blocks: list[Any]) -> None:
        self.blocks, self.log = blocks, list[str]()
        self._first = {next(block.parameters()).data_ptr(): place for place, block in enumerate(blocks)}
        for place, block in enumerate(blocks):
            block.register_forward_hook(lambda *_, place=place: self.log.append(f"computed {place}"))
        super().__init__(model, blocks, torch.device("cpu"))

    def block_of(self, tensors: Sequence[torch.Tensor]) -> int:
        return self._first[tensors[0].data_ptr()]

    def send(self, tensors: Sequence[torch.Tensor]) -> LateCopies:
        return LateCopies(self, tensors)


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


def watched(loaded: Any) -> tuple[Any, WatchedDevice]:
    model = copy.deepcopy(loaded.model)
    device = WatchedDevice(model, list(model.get_submodule(loaded.anatomy.blocks_path).children()))
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
    assert (
        device.resting + device.counted.peak - counts < 13 * block < deep.size_bytes
    )  # of which two are those on the device
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


def test_while_a_block_computes_the_next_one_is_on_its_way_forward_and_back(llama: Any) -> None:
    model, device = watched(llama)
    logits_of(model.model, torch.tensor([[5, 6, 7]]), None)
    assert device.log == [
        "send 0", "ready 0", "send 1", "computed 0", "finish 0", "ready 1", "computed 1", "finish 1",
    ]  # fmt: skip
    device.log.clear()
    for block in reversed(device.blocks):
        with device.on_device(block):
            pass
    assert device.log == ["send 1", "ready 1", "send 0", "finish 1", "ready 0", "finish 0"]


def test_however_late_copies_are_made_the_result_is_the_same(llama: Any, data_file: Path) -> None:
    whole = dict(run_tables(analyze(llama, everything(data_file, gradients="sweep"))))
    model, device = watched(llama)
    assert dict(run_tables(analyze(model, everything(data_file, offload="cpu")))) == whole
    assert {entry.split()[0] for entry in device.log} == {"send", "ready", "computed", "finish"}
    assert device.log.count("ready 0") == device.log.count("finish 0")  # what was used was waited for


def test_a_block_that_set_out_before_one_of_its_weights_was_edited_is_sent_again(llama: Any) -> None:
    model, device = offloaded(llama)
    ids, name = torch.tensor([[5, 6, 7]]), "model.layers.0.mlp.down_proj.weight"
    with device.on_device(device._blocks[1]):
        pass  # and block 0 has set out
    chosen = {name: np.arange(50)}
    with patched(llama.model, chosen, PERTURBATIONS["zero"]), patched(model.model, chosen, PERTURBATIONS["zero"]):
        expected = logits_of(llama.model, ids, None)
        assert torch.equal(logits_of(model.model, ids, None), expected)
    assert not torch.equal(logits_of(model.model, ids, None), expected)


def test_without_room_for_two_blocks_there_is_one_at_a_time(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, device = offloaded(llama)
    send = device.send

    def full(tensors: Sequence[torch.Tensor]) -> Any:
        if device._away:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return send(tensors)

    monkeypatch.setattr(device, "send", full)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(logits_of(model.model, ids, None), logits_of(llama.model, ids, None))


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
