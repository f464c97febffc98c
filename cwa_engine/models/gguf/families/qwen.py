"""Qwen 2 and 3, and mixtures of experts with the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cwa_engine.models.gguf.description import (
    GATED_MLP,
    QK_NORMS,
    Architecture,
    Table,
    attention,
    attention_sizes,
    decoder,
    expert_width,
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
from cwa_engine.models.gguf.layouts import experts_transposed, interleaved, interleaved_biases, of, row
from cwa_engine.models.gguf.rope import rope

_NORMS: Table = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_SHARED: Table = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate.weight": of("ffn_gate_inp_shexp.weight", by=row),
}


def _of(keys: Keys, model_type: str, block: Table, assumed: str = "", **fields: Any) -> Architecture:
    rotary = rope(keys, head_size(keys))
    common = {**sizes(keys), **attention_sizes(keys), **rms_norm(keys), "rope_parameters": rotary.parameters}
    table = decoder({**attention(), **_NORMS, **block})
    return Architecture(model_type, common | fields, table, heads_of(keys), (rotary,), assumed)


def qwen2(keys: Keys) -> Architecture:
    return _of(keys, "qwen2", GATED_MLP)


def qwen3(keys: Keys) -> Architecture:
    return _of(keys, "qwen3", {**GATED_MLP, **QK_NORMS}, attention_bias=has_qkv_bias(keys))


def _mixture(keys: Keys, model_type: str, block: Table, normalised: bool, **fields: Any) -> Architecture:
    """A mixture of experts. `normalised`: whether llama.cpp makes the chosen experts' weights add up to 1 by default."""
    keys.expect("expert_gating_func", 1)
    keys.expect("expert_weights_scale", 0.0, 1.0)
    said = keys.get("expert_weights_norm")
    how = "are normalised to add up to 1" if normalised else "are not normalised"
    assumed = f"the weights of the experts that are used {how}, as in llama.cpp: the file does not say"
    fields |= {
        "num_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "norm_topk_prob": normalised if said is None else said,
    }
    table = {**experts(), **block, "mlp.gate": "ffn_gate_inp"}
    return _of(keys, model_type, table, assumed if said is None else "", **fields)


def qwen2moe(keys: Keys) -> Architecture:
    """Qwen 2 with routed experts and a shared expert, which has a gate of its own."""
    shared = keys.tensor("blk.0.ffn_gate_shexp.weight").shape[0]
    keys.expect("expert_shared_feed_forward_length", shared, 0)
    widths = {"moe_intermediate_size": expert_width(keys), "shared_expert_intermediate_size": shared}
    return _mixture(keys, "qwen2_moe", _SHARED, normalised=False, qkv_bias=has_qkv_bias(keys), **widths)


def qwen3moe(keys: Keys) -> Architecture:
    fields = {"moe_intermediate_size": expert_width(keys), "attention_bias": has_qkv_bias(keys)}
    return _mixture(keys, "qwen3_moe", QK_NORMS, normalised=True, **fields)


def olmoe(keys: Keys) -> Architecture:
    fields = {"intermediate_size": expert_width(keys), "clip_qkv": keys.get("attention.clamp_kqv", 0.0) or None}
    return _mixture(keys, "olmoe", QK_NORMS, normalised=False, **fields)


def phimoe(keys: Keys) -> Architecture:
    """Phi-3.5-MoE: layer norms, and the routing of transformers; llama.cpp uses a plain softmax instead."""
    fields = {
        "num_local_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "attention_bias": has_qkv_bias(keys),
        "lm_head_bias": keys.has("output.bias"),
        "sliding_window": keys.get("attention.sliding_window", 0) or None,
    }
    return _of(keys, "phimoe", {**experts(), "mlp.router": "ffn_gate_inp"}, **fields)


def gpt_oss(keys: Keys) -> Architecture:
    """gpt-oss: every other block has a window, each head a learned attention sink. YaRN's ramp ends are not rounded."""
    rotary = rope(keys, head_size(keys), truncate=False)
    same_base(keys, rotary)
    keys.expect("feed_forward_length", expert_width(keys))
    fields = {**sizes(keys), **attention_sizes(keys), **rms_norm(keys), "rope_parameters": rotary.parameters}
    fields |= {
        "num_local_experts": keys["expert_count"],
        "num_experts_per_tok": keys["expert_used_count"],
        "sliding_window": keys["attention.sliding_window"],
        "layer_types": layer_types(keys, 2),
        "attention_bias": has_qkv_bias(keys),
    }
    block = {
        **attention(),
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.sinks": of("attn_sinks.weight"),
        "mlp.router": "ffn_gate_inp",
        "mlp.experts.gate_up_proj": of("ffn_gate_exps.weight", "ffn_up_exps.weight", by=interleaved),
        "mlp.experts.gate_up_proj_bias": of("ffn_gate_exps.bias", "ffn_up_exps.bias", by=interleaved_biases),
        "mlp.experts.down_proj": of("ffn_down_exps.weight", by=experts_transposed),
        "mlp.experts.down_proj_bias": of("ffn_down_exps.bias"),
    }
    return Architecture("gpt_oss", fields, decoder(block), heads_of(keys), (rotary,))


ARCHITECTURES: dict[str, Callable[[Keys], Architecture]] = {
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen2moe": qwen2moe,
    "qwen3moe": qwen3moe,
    "olmoe": olmoe,
    "phimoe": phimoe,
    "gpt-oss": gpt_oss,
}
