"""LLaMA and architectures with the same blocks: attention and a gated MLP, each after an RMS norm."""

from __future__ import annotations

from collections.abc import Callable

from cwa_engine.models.gguf.description import (
    GATED_MLP,
    QK_NORMS,
    Architecture,
    Table,
    attention,
    attention_sizes,
    block_has,
    decoder,
    experts,
    has_qkv_bias,
    head_size,
    heads_of,
    layer_types,
    rms_norm,
    same_base,
    sizes,
)
from cwa_engine.models.gguf.keys import Keys
from cwa_engine.models.gguf.layouts import minus_one, of, stacked
from cwa_engine.models.gguf.rope import Rope, plain_rope, rope

_NORMS: Table = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_PAIRED: Table = {**attention(paired=True), **GATED_MLP, **_NORMS}
_HALVED: Table = {**attention(), **GATED_MLP, **_NORMS}
_NORMS_BEHIND: Table = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _common(keys: Keys, rotary: Rope) -> dict[str, object]:
    return {**sizes(keys), **attention_sizes(keys), **rms_norm(keys), "rope_parameters": rotary.parameters}


def _like_llama(
    model_type: str, block: Table, fields: Callable[[Keys], dict[str, object]]
) -> Callable[[Keys], Architecture]:
    """An architecture that differs from LLaMA in a few config fields only."""

    def describe(keys: Keys) -> Architecture:
        rotary = rope(keys, head_size(keys))
        return Architecture(
            model_type, {**_common(keys, rotary), **fields(keys)}, decoder(block), heads_of(keys), (rotary,)
        )

    return describe


def llama(keys: Keys) -> Architecture:
    """LLaMA; with a window Mistral, with experts Mixtral, with biases of queries, keys and values the class of Qwen2."""
    rotary = rope(keys, head_size(keys))
    fields = _common(keys, rotary)
    if keys.get("expert_count", 0):
        return _mixtral(keys, fields, rotary)
    biases = {"attention_bias": block_has(keys, "attn_output.bias"), "mlp_bias": block_has(keys, "ffn_gate.bias")}
    window = keys.get("attention.sliding_window", 0)
    if window and not any(biases.values()):
        model_type, fields = "mistral", fields | {"sliding_window": window}
    elif has_qkv_bias(keys) and not any(biases.values()):
        model_type = "qwen2"
    else:
        keys.expect("attention.sliding_window", 0)
        model_type, fields = "llama", fields | biases
    keys.expect("expert_used_count", 0)
    return Architecture(model_type, fields, decoder(_PAIRED), heads_of(keys), (rotary,))


def _mixtral(keys: Keys, fields: dict[str, object], rotary: Rope) -> Architecture:
    """Mixtral: the weights of the chosen experts add up to 1, as llama.cpp computes it."""
    keys.expect("expert_gating_func", 1)
    keys.expect("expert_weights_norm", True)
    keys.expect("expert_weights_scale", 0.0, 1.0)
    fields |= {
        "num_local_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "sliding_window": keys.get("attention.sliding_window", 0) or None,
    }
    block = {**attention(paired=True), **_NORMS, **experts(), "mlp.gate": "ffn_gate_inp"}
    return Architecture("mixtral", fields, decoder(block), heads_of(keys), (rotary,))


def mistral3(keys: Keys) -> Architecture:
    """Ministral 3: queries are scaled with the logarithm of their position."""
    multiplier = keys.get("rope.scaling.yarn_log_multiplier", 0.0)
    rotary = rope(keys, head_size(keys))
    grown = {"llama_4_scaling_beta": keys.get("attention.temperature_scale", 0.0), "mscale_all_dim": multiplier}
    keys.expect("rope.scaling.type", "yarn")
    fields = _common(keys, rotary) | {"sliding_window": None, "rope_parameters": {**rotary.parameters, **grown}}
    return Architecture("ministral3", fields, decoder(_PAIRED), heads_of(keys), (rotary,))


def _biases(keys: Keys) -> dict[str, object]:
    return {"attention_bias": has_qkv_bias(keys), "mlp_bias": block_has(keys, "ffn_up.bias")}


def _smollm3(keys: Keys) -> dict[str, object]:
    """SmolLM3: every fourth block has no rotary positions."""
    rotated = [int((block + 1) % 4 != 0) for block in range(keys["block_count"])]
    return _biases(keys) | {"no_rope_layers": rotated, "use_sliding_window": False}


def _granite_scales(keys: Keys) -> dict[str, object]:
    keys.expect("rope.scaling.finetuned", True)  # if it is false, llama.cpp rotates nothing
    return {
        "attention_bias": has_qkv_bias(keys),
        "attention_multiplier": keys.get("attention.scale", 0.0) or head_size(keys) ** -0.5,
        "embedding_multiplier": keys.get("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": keys.get("residual_scale", 0.0) or 1.0,
        "logits_scaling": keys["logit_scale"],
    }


def _granite(keys: Keys) -> dict[str, object]:
    return _granite_scales(keys) | {"mlp_bias": block_has(keys, "ffn_up.bias")}


def granitemoe(keys: Keys) -> Architecture:
    """Granite with routed experts, and in some models a shared expert for all tokens."""
    shared, rotary = keys.get("expert_shared_feed_forward_length", 0), rope(keys, head_size(keys))
    fields = {
        **_common(keys, rotary),
        **_granite_scales(keys),
        "num_local_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
    }
    mixture = "block_sparse_moe"
    block = {**attention(paired=True), **_NORMS, **experts(f"{mixture}.experts"), f"{mixture}.router": "ffn_gate_inp"}
    if shared:
        fields["shared_intermediate_size"] = shared
        above = of("ffn_gate_shexp.weight", "ffn_up_shexp.weight", by=stacked)
        block |= {"shared_mlp.input_linear.weight": above, "shared_mlp.output_linear": "ffn_down_shexp"}
    return Architecture(f"granitemoe{'shared' * bool(shared)}", fields, decoder(block), heads_of(keys), (rotary,))


def phi3(keys: Keys) -> Architecture:
    """Phi-3: queries, keys and values in one tensor, and gate and up in one."""
    rotary = rope(keys, head_size(keys))
    fields = _common(keys, rotary) | {
        "original_max_position_embeddings": keys.get("rope.scaling.original_context_length", 0)
        or keys["context_length"],
        "sliding_window": keys.get("attention.sliding_window", 0) or None,
    }
    block = {
        **_NORMS,
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    return Architecture("phi3", fields, decoder(block), heads_of(keys), (rotary,))


def stablelm(keys: Keys) -> Architecture:
    parallel = not block_has(keys, "ffn_norm.weight")
    keys.expect("use_parallel_residual", parallel)
    rotary = rope(keys, head_size(keys))
    fields = sizes(keys) | attention_sizes(keys)
    fields |= {
        "layer_norm_eps": keys["attention.layer_norm_epsilon"],
        "rope_parameters": rotary.parameters,
        "use_qkv_bias": has_qkv_bias(keys),
        "use_parallel_residual": parallel,
    }
    return Architecture("stablelm", fields, decoder(_HALVED), heads_of(keys), (rotary,))


def starcoder2(keys: Keys) -> Architecture:
    rotary = rope(keys, head_size(keys))
    fields = sizes(keys) | attention_sizes(keys)
    fields |= {
        "norm_epsilon": keys["attention.layer_norm_epsilon"],
        "rope_parameters": rotary.parameters,
        "use_bias": has_qkv_bias(keys),
        "sliding_window": keys.get("attention.sliding_window", 0) or None,
    }
    block = {**attention(), **_NORMS, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    return Architecture("starcoder2", fields, decoder(block), heads_of(keys), (rotary,))


def nemotron(keys: Keys) -> Architecture:
    """Nemotron: the file stores the weights of layer norms with 1 added."""
    rotary = rope(keys, head_size(keys))
    keys.ignore("attention.layer_norm_rms_epsilon")  # the converter writes the same epsilon twice
    fields = sizes(keys) | attention_sizes(keys) | _biases(keys)
    fields |= {"norm_eps": keys["attention.layer_norm_epsilon"], "rope_parameters": rotary.parameters}
    norms = {f"{name}.weight": of(f"{tensor}.weight", by=minus_one) for name, tensor in _NORMS.items()}
    block = {**attention(), **_NORMS, **norms, "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    table = decoder(block) | {"model.norm.weight": of("output_norm.weight", by=minus_one)}
    return Architecture("nemotron", fields, table, heads_of(keys), (rotary,))


def olmo(keys: Keys) -> Architecture:
    """OLMo: norms without parameters, with an epsilon of 1e-5."""
    keys.expect("attention.layer_norm_epsilon", 1e-5)
    rotary = rope(keys, head_size(keys))
    fields = sizes(keys) | attention_sizes(keys)
    fields |= {"clip_qkv": keys.get("attention.clamp_kqv", 0.0) or None, "rope_parameters": rotary.parameters}
    return Architecture("olmo", fields, decoder({**attention(paired=True), **GATED_MLP}), heads_of(keys), (rotary,))


def olmo2(keys: Keys) -> Architecture:
    """OLMo 2; with a window OLMo 3. The rotation of blocks with a window is not scaled."""
    rotary, size = rope(keys, head_size(keys)), head_size(keys)
    fields = _common(keys, rotary) | {"attention_bias": has_qkv_bias(keys)}
    ropes: tuple[Rope, ...] = (rotary,)
    window = keys.get("attention.sliding_window", 0)
    if window:
        local = plain_rope(keys.get("rope.freq_base_swa", rotary.parameters["rope_theta"]), size)
        parameters = {"full_attention": rotary.parameters, "sliding_attention": local.parameters}
        fields |= {"sliding_window": window, "layer_types": layer_types(keys, 4), "rope_parameters": parameters}
        ropes = (rotary, local)
    block = {**attention(), **GATED_MLP, **QK_NORMS, **_NORMS_BEHIND}
    return Architecture("olmo3" if window else "olmo2", fields, decoder(block), heads_of(keys), ropes)


def cohere(keys: Keys) -> Architecture:
    """Command R: attention and MLP after one norm. transformers rotates consecutive features, as llama.cpp does."""
    rotary = rope(keys, head_size(keys))
    fields = sizes(keys) | attention_sizes(keys)
    fields |= {
        "layer_norm_eps": keys["attention.layer_norm_epsilon"],
        "logit_scale": keys["logit_scale"],
        "rope_parameters": rotary.parameters,
        "attention_bias": has_qkv_bias(keys),
        "use_qk_norm": block_has(keys, "attn_q_norm.weight"),
    }
    block = {**attention(), **GATED_MLP, **QK_NORMS, "input_layernorm": "attn_norm"}
    return Architecture("cohere", fields, decoder(block), heads_of(keys), (rotary,))


def cohere2(keys: Keys) -> Architecture:
    described = cohere(keys)
    same_base(keys, described.ropes[0])
    fields = {name: value for name, value in described.fields.items() if name != "use_qk_norm"}
    fields |= {"sliding_window": keys["attention.sliding_window"], "layer_types": layer_types(keys, 4)}
    return Architecture("cohere2", fields, described.parameters, described.heads, described.ropes)


def exaone4(keys: Keys) -> Architecture:
    """EXAONE 4: without a window all blocks have rotary positions, with one only the blocks that have the window."""
    rotary = rope(keys, head_size(keys))
    same_base(keys, rotary)
    window = keys.get("attention.sliding_window", 0)
    kinds = layer_types(keys, 4) if window else ["full_attention"] * keys["block_count"]
    fields = _common(keys, rotary) | {"sliding_window": window or None, "layer_types": kinds}
    if not window:
        keys.ignore("attention.sliding_window_pattern")
        fields["sliding_window_pattern"] = None
    block = {**attention(), **GATED_MLP, **QK_NORMS, **_NORMS_BEHIND}
    return Architecture("exaone4", fields, decoder(block), heads_of(keys), (rotary,))


def glm4(keys: Keys) -> Architecture:
    """GLM-4: a norm before and a norm after attention, and the same for the MLP."""
    rotary = rope(keys, head_size(keys))
    norms = {"post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm"}
    fields = _common(keys, rotary) | {"attention_bias": has_qkv_bias(keys)}
    block = {**attention(), **_NORMS, **norms, "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    return Architecture("glm4", fields, decoder(block), heads_of(keys), (rotary,))


_SEED_OSS: Table = {**_HALVED, "post_attention_layernorm": "post_attention_norm"}
_HUNYUAN: Table = {**_HALVED, "self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"}
_ARCEE: Table = {**attention(paired=True), **_NORMS, "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}

ARCHITECTURES: dict[str, Callable[[Keys], Architecture]] = {
    "llama": llama,
    "mistral3": mistral3,
    "arcee": _like_llama("arcee", _ARCEE, _biases),
    "smollm3": _like_llama("smollm3", _PAIRED, _smollm3),
    "granite": _like_llama("granite", _PAIRED, _granite),
    "granitemoe": granitemoe,
    "phi3": phi3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
    "nemotron": nemotron,
    "olmo": olmo,
    "olmo2": olmo2,
    "command-r": cohere,
    "cohere2": cohere2,
    "exaone4": exaone4,
    "glm4": glm4,
    "ernie4_5": _like_llama("ernie4_5", _HALVED, lambda keys: {"use_bias": has_qkv_bias(keys)}),
    "hunyuan-dense": _like_llama("hunyuan_v1_dense", _HUNYUAN, lambda keys: {"attention_bias": has_qkv_bias(keys)}),
    "seed_oss": _like_llama(
        "seed_oss",
        _SEED_OSS,
        lambda keys: _biases(keys) | {"attention_out_bias": block_has(keys, "attn_output.bias")},
    ),
}
