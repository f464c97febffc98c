"""Names, components and orientation of parameters."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig, PreTrainedConfig

from cwa_engine.base.errors import InvalidInput
from cwa_engine.models.anatomy import WeightPosition, anatomy_of
from tests.architectures import tiny_architecture
from tests.engine.conftest import wrap
from tests.models import tiny_model


def test_every_parameter_has_a_block_a_component_and_is_counted_once(loaded: Any) -> None:
    anatomy = loaded.anatomy
    assert anatomy.blocks == 2
    assert anatomy.numel == sum(p.numel() for p in loaded.model.parameters())
    assert "other" not in {parameter.component for parameter in anatomy.parameters.values()}
    assert {p.layer for p in anatomy.parameters.values()} == {None, 0, 1}
    assert [p.order for p in anatomy.parameters.values()] == list(range(len(anatomy.parameters)))


# Every module that owns parameters; a star is the number of a block.
COMPONENTS = {
    "gpt2": {
        "transformer.wte": "embedding", "transformer.wpe": "embedding", "transformer.ln_f": "norm",
        "transformer.h.*.ln_1": "norm", "transformer.h.*.attn.c_attn": "qkv", "transformer.h.*.attn.c_proj": "o",
        "transformer.h.*.ln_2": "norm", "transformer.h.*.mlp.c_fc": "up", "transformer.h.*.mlp.c_proj": "down",
    },
    "neox": {
        "gpt_neox.embed_in": "embedding", "gpt_neox.final_layer_norm": "norm", "lm_head": "head",
        "gpt_neox.layers.*.input_layernorm": "norm", "gpt_neox.layers.*.post_attention_layernorm": "norm",
        "gpt_neox.layers.*.attention.query_key_value": "qkv", "gpt_neox.layers.*.attention.dense": "o",
        "gpt_neox.layers.*.mlp.dense_h_to_4h": "up", "gpt_neox.layers.*.mlp.dense_4h_to_h": "down",
    },
    "opt": {
        "model.decoder.embed_tokens": "embedding", "model.decoder.embed_positions": "embedding",
        "model.decoder.project_in": "embedding", "model.decoder.project_out": "head",
        "model.decoder.final_layer_norm": "norm", "model.decoder.layers.*.self_attn.q_proj": "q",
        "model.decoder.layers.*.self_attn.k_proj": "k", "model.decoder.layers.*.self_attn.v_proj": "v",
        "model.decoder.layers.*.self_attn.out_proj": "o", "model.decoder.layers.*.fc1": "up",
        "model.decoder.layers.*.self_attn_layer_norm": "norm", "model.decoder.layers.*.fc2": "down",
        "model.decoder.layers.*.final_layer_norm": "norm",
    },
    "llama": {
        "model.embed_tokens": "embedding", "model.norm": "norm", "lm_head": "head",
        "model.layers.*.input_layernorm": "norm", "model.layers.*.post_attention_layernorm": "norm",
        "model.layers.*.self_attn.q_proj": "q", "model.layers.*.self_attn.k_proj": "k",
        "model.layers.*.self_attn.v_proj": "v", "model.layers.*.self_attn.o_proj": "o",
        "model.layers.*.mlp.gate_proj": "gate", "model.layers.*.mlp.up_proj": "up",
        "model.layers.*.mlp.down_proj": "down",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", list(COMPONENTS))
def test_components_and_layers_are_named_as_the_field_names_them(family: str) -> None:
    found: dict[str, str] = {}
    for name, parameter in wrap(tiny_model(family)).anatomy.parameters.items():
        owner = name.rpartition(".")[0]
        digits = [int(part) for part in owner.split(".") if part.isdecimal()]
        assert parameter.layer == (digits[0] if digits else None)
        found[re.sub(r"\.\d+\.", ".*.", owner)] = parameter.component
    assert found == COMPONENTS[family]


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (GPT2Config(), 124_439_808),
        (
            GPTNeoXConfig(
                hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048, vocab_size=50304
            ),
            70_426_624,
        ),
        (OPTConfig(), 125_239_296),
        (LlamaConfig(), 6_738_415_616),
    ],
    ids=["gpt2", "pythia-70m", "opt-125m", "llama-2-7b"],
)
def test_the_number_of_weights_is_the_published_one(config: PreTrainedConfig, published: int) -> None:
    with torch.device("meta"):  # shapes without memory
        model = AutoModelForCausalLM.from_config(config)
    assert anatomy_of(model).numel == published


def test_tied_parameters_are_named_once_under_their_first_name() -> None:
    loaded = wrap(tiny_model("gpt2"))
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert [name for name in loaded.anatomy.parameters if "wte" in name or "lm_head" in name] == [
        "transformer.wte.weight"
    ]


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight"),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight"),
        ("neox", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
        ("opt", "model.decoder.layers.0.fc1.weight"),
        ("llama", "model.layers.0.mlp.up_proj.weight"),
        ("llama", "model.layers.1.mlp.down_proj.weight"),
    ],
)
def test_a_zeroed_weight_no_longer_links_the_in_feature_to_the_out_feature_it_is_reported_with(
    family: str, name: str
) -> None:
    loaded = wrap(tiny_model(family))
    layer, parameter = loaded.model.get_submodule(name.removesuffix(".weight")), loaded.anatomy.parameters[name]
    flat_index = 5 * parameter.shape[1] + 7
    place = parameter.place(flat_index)
    out_feature, in_feature = place.out_feature, place.in_feature
    assert (out_feature, in_feature) == ((7, 5) if family == "gpt2" else (5, 7))
    width = parameter.shape[0] if family == "gpt2" else parameter.shape[1]
    inputs = torch.eye(width).unsqueeze(0)  # token i is nothing but input feature i
    before = layer(inputs)
    loaded.model.get_parameter(name).data.view(-1)[flat_index] = 0.0
    assert (layer(inputs) - before)[0].nonzero().tolist() == [[in_feature, out_feature]]


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_a_zeroed_weight_of_an_expert_no_longer_links_its_features_in_that_expert_alone(model_type: str) -> None:
    loaded = wrap(tiny_architecture(model_type))
    name = "model.layers.0.mlp.experts.down_proj"
    parameter, stack = loaded.anatomy.parameters[name], loaded.model.get_parameter(name).data
    assert (parameter.component, parameter.experts, parameter.transposed) == ("expert", 4, model_type == "gpt_oss")
    assert (parameter.out_features, parameter.in_features) == (32, 64)
    flat_index = parameter.flat_index(2, 5, 7)
    assert parameter.place(flat_index) == WeightPosition(2, 5, 7)

    def product(expert: int) -> torch.Tensor:  # as the model multiplies: gpt_oss x @ W, the others x @ W.T
        inputs = torch.eye(64)
        return inputs @ (stack[expert] if parameter.transposed else stack[expert].mT)

    before = [product(expert) for expert in range(4)]
    stack.view(-1)[flat_index] = 0.0
    changed = [
        (expert, *place) for expert in range(4) for place in (product(expert) - before[expert]).nonzero().tolist()
    ]
    assert changed == [(2, 7, 5)]


@pytest.mark.parametrize(
    ("model_type", "components"),
    [
        (
            "mixtral",
            {"mlp.gate.weight": "router", "mlp.experts.gate_up_proj": "expert", "self_attn.q_proj.weight": "q"},
        ),
        (
            "gpt_oss",
            {"mlp.router.weight": "router", "mlp.router.bias": "router", "mlp.experts.down_proj_bias": "expert"},
        ),
        ("phi3", {"self_attn.qkv_proj.weight": "qkv", "mlp.gate_up_proj.weight": "up"}),
        ("qwen2_moe", {"mlp.shared_expert.down_proj.weight": "down", "mlp.shared_expert_gate.weight": "router"}),
        ("deepseek_v3", {"self_attn.kv_b_proj.weight": "qkv", "self_attn.q_b_proj.weight": "q"}),
    ],
)
def test_components_of_newer_architectures_are_named(model_type: str, components: dict[str, str]) -> None:
    found = wrap(tiny_architecture(model_type)).anatomy.parameters
    for ending, component in components.items():
        named = {p.component for name, p in found.items() if name.endswith(ending)}
        assert named == {component}


def test_heads_are_the_columns_of_the_output_projection(loaded: Any) -> None:
    sizes = {p.component: p.head_size for p in loaded.anatomy.parameters.values() if p.head_size}
    assert sizes == {"o": 16}  # width 32, two heads


def test_include_and_exclude_take_names_and_components(llama: Any) -> None:
    anatomy = llama.anatomy
    assert {p.component for p in anatomy.only(["down", "norm"], []).parameters.values()} == {"down", "norm"}
    assert list(anatomy.only(["*.layers.1.*"], ["*.mlp.*", "norm"]).parameters) == [
        f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkvo"
    ]
    assert anatomy.only([], []) == anatomy


@pytest.mark.parametrize(
    ("include", "exclude", "said"),
    [
        (["dwon"], [], "--include 'dwon' matches no"),
        ([], ["x*"], "--exclude 'x\\*'"),
        ([], ["*"], "leave no parameter"),
    ],
)
def test_a_pattern_that_matches_nothing_is_never_passed_over(
    llama: Any, include: list[str], exclude: list[str], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        llama.anatomy.only(include, exclude)


def test_a_vector_has_no_in_feature(llama: Any) -> None:
    assert llama.anatomy.parameters["model.norm.weight"].place(17) == WeightPosition(None, 17, None)
