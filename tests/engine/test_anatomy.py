"""Names, components and orientation of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine.conftest import wrap
from tests.models import tiny_model


def test_every_parameter_has_a_block_a_component_and_is_counted_once(loaded: Any) -> None:
    anatomy = loaded.anatomy
    assert anatomy.blocks == 2
    assert anatomy.numel == sum(p.numel() for p in loaded.model.parameters())
    assert "other" not in {parameter.component for parameter in anatomy.parameters.values()}
    assert {p.layer for p in anatomy.parameters.values()} == {None, 0, 1}
    assert [p.order for p in anatomy.parameters.values()] == list(range(len(anatomy.parameters)))


COMPONENTS = {
    "gpt2": {"transformer.wpe.weight": "embedding", "transformer.h.1.attn.c_attn.bias": "qkv",
             "transformer.h.0.attn.c_proj.weight": "o", "transformer.h.0.mlp.c_proj.weight": "down",
             "transformer.h.0.mlp.c_fc.weight": "up", "transformer.ln_f.bias": "norm"},
    "neox": {"gpt_neox.embed_in.weight": "embedding", "gpt_neox.layers.0.attention.query_key_value.weight": "qkv",
             "gpt_neox.layers.0.attention.dense.weight": "o", "gpt_neox.layers.0.mlp.dense_4h_to_h.weight": "down",
             "gpt_neox.layers.0.mlp.dense_h_to_4h.weight": "up", "lm_head.weight": "head"},
    "opt": {"model.decoder.layers.0.self_attn.k_proj.bias": "k", "model.decoder.layers.0.self_attn.out_proj.weight": "o",
            "model.decoder.layers.0.fc1.weight": "up", "model.decoder.layers.0.fc2.weight": "down",
            "model.decoder.layers.0.self_attn_layer_norm.weight": "norm", "model.decoder.project_in.weight": "embedding"},
    "llama": {"model.layers.0.self_attn.q_proj.weight": "q", "model.layers.0.self_attn.v_proj.weight": "v",
              "model.layers.0.mlp.gate_proj.weight": "gate", "model.layers.0.mlp.down_proj.weight": "down",
              "model.layers.1.post_attention_layernorm.weight": "norm", "model.norm.weight": "norm"},
}  # fmt: skip


@pytest.mark.parametrize("family", list(COMPONENTS))
def test_components_are_named_as_the_field_names_them(family: str) -> None:
    parameters = wrap(tiny_model(family)).anatomy.parameters
    assert {name: parameters[name].component for name in COMPONENTS[family]} == COMPONENTS[family]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.h.0.mlp.c_fc.weight"),
        ("neox", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
        ("opt", "model.decoder.layers.0.fc1.weight"),
        ("llama", "model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_a_weight_links_the_in_feature_to_the_out_feature_it_is_reported_with(family: str, name: str) -> None:
    loaded = wrap(tiny_model(family))
    layer = loaded.model.get_submodule(name.removesuffix(".weight"))
    flat_index = 5 * loaded.anatomy.parameters[name].shape[1] + 7
    out_feature, in_feature = loaded.anatomy.parameters[name].features(flat_index)
    assert {out_feature, in_feature} == {5, 7}
    inputs = torch.zeros(1, 1, 32)
    inputs[0, 0, in_feature] = 1.0
    before = layer(inputs)
    loaded.model.get_parameter(name).data.view(-1)[flat_index] += 1.0
    moved = (layer(inputs) - before).flatten().nonzero().flatten().tolist()
    assert moved == [out_feature]


def test_a_vector_has_no_in_feature(llama: Any) -> None:
    assert llama.anatomy.parameters["model.norm.weight"].features(17) == (17, None)
