"""Quantised checkpoints are analysed as the weights they stand for, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from cwa_engine.base.errors import CwaError, ModelBroken
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.loading import load_model, load_without_weights
from tests.models import edit_json, save_tiny

MADE = Path(__file__).with_name("quantised")  # by the quantisers' own packages, see make.py there
DOWN = "model.layers.0.mlp.down_proj"  # of the tiny llama, 32 by 64


def made(name: str) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """(parts, the weight as the package restores it, quantization_config)"""
    tensors = load_file(MADE / f"{name}.safetensors")
    with (MADE / f"{name}.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    reference = tensors.pop("reference")
    return tensors, reference, json.loads(header["__metadata__"]["settings"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model")


def quantise(folder: Path, parts: Mapping[str, Tensor], settings: Mapping[str, Any], module: str = DOWN) -> None:
    """Put the parts in the place of a weight of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{module}.weight"]
    tensors |= {f"{module}.{name}": tensor for name, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", quantization_config=settings)


# What the packages computed in half precision on the way to `reference`.
ROUNDED = {"int8": 2e-3, "compressed-nvfp4": 4e-3}


@pytest.mark.parametrize("name", sorted(path.stem for path in MADE.glob("*.safetensors")))
def test_a_quantised_weight_is_the_one_that_the_quantiser_restores(name: str, folder: Path) -> None:
    parts, reference, settings = made(name)
    quantise(folder, parts, settings)
    loaded = load_model(str(folder))
    weight = loaded.model.get_parameter(f"{DOWN}.weight")
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight.data, reference, rtol=ROUNDED.get(name, 1e-6), atol=ROUNDED.get(name, 1e-6))
    (note,) = loaded.notes
    assert note.startswith("analysed as dequantised from ")
    assert all(parameter.is_floating_point() for parameter in loaded.model.parameters())


def test_experts_in_four_bit_floats_are_restored_as_transformers_restores_them(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    from tests.models import VOCABULARY, tiny_tokenizer

    config = GptOssConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_local_experts=2,
        num_experts_per_tok=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, layer_types=["full_attention"],
    )  # fmt: skip
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expected = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, read, written = tensors.pop(name).shape
        blocks = torch.randint(256, (experts, written, read // 32, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, (experts, written, read // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "mxfp4"})
    model = load_model(str(tmp_path)).model
    assert len(expected) == 2
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name).data, weight)


def fp8(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes and what they are multiplied with, for blocks of so many rows and columns."""
    rows, columns = (-(-size // block) for size in weight.shape)
    scale = torch.empty(rows, columns)
    codes = torch.empty_like(weight).to(torch.float8_e4m3fn)
    for row in range(rows):
        for column in range(columns):
            part = slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block)
            scale[row, column] = weight[part].abs().max() / 448
            codes[part] = (weight[part] / scale[row, column]).to(torch.float8_e4m3fn)
    return codes, scale


@pytest.mark.parametrize("block", [16, 24], ids=["whole blocks", "blocks that stand over"])
def test_fp8_blocks_are_restored_by_their_scales(block: int, folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")[f"{DOWN}.weight"]
    codes, scale = fp8(weight, block)
    settings = {"quant_method": "fp8", "weight_block_size": [block, block]}
    quantise(folder, {"weight": codes, "weight_scale_inv": scale}, settings)
    found = load_model(str(folder)).model.get_parameter(f"{DOWN}.weight").data
    spread = scale.repeat_interleave(block, 0)[:32].repeat_interleave(block, 1)[:, :64]
    assert torch.equal(found, codes.float() * spread)
    torch.testing.assert_close(found, weight, rtol=0.07, atol=0.01)


def test_the_scales_of_modelopt_are_used_and_those_of_activations_are_not_needed(folder: Path) -> None:
    weight = load_file(folder / "model.safetensors")[f"{DOWN}.weight"]
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    quantise(folder, {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.1)}, {})
    edit_json(folder / "config.json", quantization_config=None)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    found = load_model(str(folder)).model.get_parameter(f"{DOWN}.weight").data
    assert torch.equal(found, codes.float() * scale)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "hqq"},
        {"quant_method": "torchao"},
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*": {}}},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"a": {"weights": {}}}},
        {"quant_method": "of tomorrow"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_what_cannot_be_restored_exactly_is_refused_by_name_before_anything_is_read(
    settings: dict[str, Any], folder: Path
) -> None:
    edit_json(folder / "config.json", quantization_config=settings)
    for attempt in (load_model, lambda name: load_without_weights(name, None, HubAccess())):
        with pytest.raises(
            ModelBroken, match=f"cannot be undone exactly here: quant_method {settings['quant_method']}"
        ):
            attempt(str(folder))


def test_codes_without_a_word_on_what_they_stand_for_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for dtype in (torch.float8_e4m3fn, torch.int8):
        coded = {**tensors, f"{DOWN}.weight": tensors[f"{DOWN}.weight"].to(dtype)}
        save_file(coded, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelBroken, match=rf"stores {DOWN}.weight as {str(dtype)[6:]}, and nothing says what"):
            load_model(str(folder))


def test_a_part_that_is_missing_is_named(folder: Path) -> None:
    parts, _, settings = made("gptq4")
    del parts["scales"]
    quantise(folder, parts, settings)
    with pytest.raises(ModelBroken, match=rf"{DOWN}\.weight cannot be restored from GPTQ 4-bit: it lacks 'scales'"):
        load_model(str(folder))


def test_room_is_made_for_the_weights_as_they_will_be_in_memory(folder: Path) -> None:
    parts, _, settings = made("nf4")
    quantise(folder, parts, settings)
    needed: list[int] = []
    loaded = load_model(str(folder), make_room=needed.append)
    assert needed == [loaded.size_bytes] == [4 * loaded.anatomy.numel]


def test_an_error_about_a_quantised_model_says_what_to_do(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "hqq"})
    with pytest.raises(CwaError) as raised:
        load_model(str(folder))
    assert "remove quantization_config" in raised.value.hint
