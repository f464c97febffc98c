"""Everything in a checkpoint is used, or refused, or named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cwa_engine.base.errors import ModelBroken
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.loading import load_model, load_without_weights
from tests.models import edit_json, save_tiny, tiny_model, tiny_tokenizer

Tensors = dict[str, Tensor]
ATTENTION = "model.layers.0.self_attn"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """EditContext the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=torch.arange(3, 40)[None]).logits)


def test_layers_beyond_the_config_are_an_error_and_not_left_out(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelBroken, match=r"no place for .*they look like layers 1 to 1, beyond") as raised:
        load_model(str(folder))
    assert "number of layers" in raised.value.hint


def test_biases_that_the_config_switches_off_are_an_error(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({f"{ATTENTION}.{name}_proj.bias": torch.ones(32) for name in "qkv"}))
    with pytest.raises(ModelBroken, match=rf"no place for {ATTENTION}\.k_proj\.bias.*biases") as raised:
        load_model(str(folder))
    assert "attention_bias" in raised.value.hint


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        (f"{ATTENTION}.q_proj.weight_scale", "scales or codes of a quantised model"),
        (f"{ATTENTION}.q_proj.weight_scale_inv", "scales or codes of a quantised model"),
        (f"{ATTENTION}.q_proj.lora_A.weight", "a LoRA adapter"),
        ("vision_tower.patch_embed.weight", "a part for pictures or sound"),
        ("score.weight", "a head for another task"),
        (f"{ATTENTION}.rotary_bands.weight", "of another architecture or version"),
    ],
)
def test_a_tensor_without_a_place_is_named_with_what_it_looks_like(name: str, looks: str, folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    with pytest.raises(ModelBroken, match=f"no place for {name}: they (are|look like) {looks}"):
        load_model(str(folder))


@pytest.mark.parametrize("with_base", [True, False], ids=["beside base weights", "by itself"])
def test_an_adapter_is_refused_with_the_way_to_merge_it(with_base: bool, folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "gpt2"}))
    save_file({"base_model.model.q.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    if not with_base:
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    for attempt in (load_model, lambda name: load_without_weights(name, None, HubAccess())):
        with pytest.raises(ModelBroken, match="adapter") as raised:
            attempt(str(folder))
        assert "merge_and_unload" in raised.value.hint


def test_tables_that_older_versions_saved_are_left_out_with_a_note(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({f"{ATTENTION}.rotary_emb.inv_freq": torch.ones(8)}))
    loaded = load_model(str(folder))
    assert loaded.notes == (f"not used, for the model computes or ignores them: {ATTENTION}.rotary_emb.inv_freq",)
    assert torch.equal(logits(loaded.model), logits(tiny_model("llama")))


def test_a_head_that_differs_from_the_embedding_it_should_be_tied_to_is_used_and_named(folder: Path) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=True)
    loaded = load_model(str(folder))
    assert loaded.notes == (
        "its config ties the head to the embedding, but its files hold two that differ: each is used as stored",
    )
    assert torch.equal(logits(loaded.model), logits(tiny_model("llama")))


def test_a_model_of_another_class_than_its_config_names_says_so(folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["MistralForCausalLM"])
    assert load_model(str(folder)).notes == ("its config names MistralForCausalLM; it is analysed as LlamaForCausalLM",)


def test_the_same_weight_under_two_names_is_refused(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({"norm.weight": torch.ones(32)}))
    with pytest.raises(ModelBroken, match=r"has norm\.weight twice"):
        load_model(str(folder))


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    first = load_file(shards[0])
    save_file({**load_file(shards[1]), next(iter(first)): next(iter(first.values()))}, shards[1])
    with pytest.raises(ModelBroken, match=f"is in two files, {shards[0].name} and {shards[1].name}"):
        load_model(str(folder))


def test_what_the_class_lets_checkpoints_lack_is_named(tmp_path: Path) -> None:
    from tests.architectures import tiny_architecture

    tiny_architecture("axk1").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).notes == ()
    (bias,) = (name for name in load_file(tmp_path / "model.safetensors") if name.endswith("e_score_correction_bias"))
    change(tmp_path, lambda tensors: tensors.pop(bias))
    assert load_model(str(tmp_path)).notes == (f"not in its files, and left as the model begins with them: {bias}",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, folder: Path) -> None:
    change(folder, lambda tensors: tensors["model.embed_tokens.weight"].view(-1)[-1:].fill_(value))
    with pytest.raises(ModelBroken, match=r"model\.embed_tokens\.weight of .* NaN or infinite in torch\.float32"):
        load_model(str(folder))


def test_weights_that_overflow_in_the_dtype_asked_for_are_refused(folder: Path) -> None:
    change(folder, lambda tensors: tensors["model.norm.weight"][:1].fill_(1e5))
    assert load_model(str(folder), dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ModelBroken, match=r"infinite in torch\.float16"):
        load_model(str(folder), dtype="float16")


def test_files_beside_the_weights_that_are_read_are_named(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    needed: list[int] = []
    loaded = load_model(str(folder), make_room=needed.append)
    assert loaded.notes == (
        "not read: consolidated.safetensors, pytorch_model.bin; the weights are those of model.safetensors",
    )
    assert needed == [loaded.size_bytes]
    assert set(loaded.files) == {"model.safetensors", "config.json"}


def test_a_checkpoint_that_torch_saved_takes_what_it_needs_in_memory(folder: Path) -> None:
    half = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(half, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    needed: list[int] = []
    loaded = load_model(str(folder), make_room=needed.append)
    assert needed == [4 * loaded.anatomy.numel]
    assert torch.equal(loaded.model.get_parameter("model.norm.weight").data, half["model.norm.weight"].float())


def test_a_warm_model_does_not_change_with_its_files(folder: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        model = load_model(str(folder), dtype=dtype).model
        before = logits(model)
        (folder / "model.safetensors").write_bytes(b"\0" * (folder / "model.safetensors").stat().st_size)  # in place
        assert torch.equal(logits(model), before)
        with (folder / "model.safetensors").open("wb"):  # a mapping of it would end this process
            pass
        assert torch.equal(logits(model), before)
        save_tiny("llama", folder)


def test_files_that_change_while_they_are_read_are_not_taken_for_a_model(folder: Path) -> None:
    def overwrite(done: int, total: int) -> None:
        if done == total:
            save_tiny("llama", folder, seed=1)

    with pytest.raises(ModelBroken, match="changed while they were read"):
        load_model(str(folder), read=overwrite)
