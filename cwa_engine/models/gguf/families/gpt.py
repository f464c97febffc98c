"""GPT-2 and its descendants, and other architectures whose parameters are not named like LLaMA's in transformers."""

from __future__ import annotations

from collections.abc import Callable

from cwa_engine.models.gguf.description import (
    Architecture,
    Table,
    attention,
    attention_sizes,
    block_has,
    decoder,
    has_qkv_bias,
    head_size,
    heads_of,
    in_blocks,
    query_heads,
    sizes,
    vocabulary,
)
from cwa_engine.models.gguf.keys import Keys
from cwa_engine.models.gguf.layouts import Heads, grouped_qkv, log_of_negative, of, one_channel, transposed
from cwa_engine.models.gguf.rope import rope


def _grouped(parameter: str) -> Table:
    return {f"{parameter}.{end}": of(f"attn_qkv.{end}", by=grouped_qkv) for end in ("weight", "bias")}


def _no_groups(keys: Keys) -> int:
    """Number of heads. Raises ModelBroken if keys have fewer heads than queries."""
    heads = query_heads(keys)
    keys.expect("attention.head_count_kv", heads)
    return heads


_GPT2_ENDS: Table = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
_GPT2_BLOCK: Table = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _gpt2_sizes(keys: Keys) -> dict[str, object]:
    return {
        "vocab_size": vocabulary(keys),
        "n_positions": keys["context_length"],
        "n_embd": keys["embedding_length"],
        "n_layer": keys["block_count"],
        "n_head": query_heads(keys),
        "n_inner": keys["feed_forward_length"],
        "layer_norm_epsilon": keys["attention.layer_norm_epsilon"],
    }


def gpt2(keys: Keys) -> Architecture:
    """GPT-2: linear layers store their weights as [in, out]."""
    _no_groups(keys)
    linear = {
        f"{parameter}.weight": of(f"{_GPT2_BLOCK[parameter]}.weight", by=transposed)
        for parameter in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    table = {**_GPT2_ENDS, **in_blocks("transformer.h", {**_GPT2_BLOCK, **linear})}
    return Architecture("gpt2", _gpt2_sizes(keys), table)


def starcoder(keys: Keys) -> Architecture:
    """StarCoder: one key head for all queries."""
    keys.expect("attention.head_count_kv", 1)
    table = {**_GPT2_ENDS, **in_blocks("transformer.h", _GPT2_BLOCK)}
    return Architecture("gpt_bigcode", _gpt2_sizes(keys) | {"multi_query": True}, table)


def gptneox(keys: Keys) -> Architecture:
    _no_groups(keys)
    rotary = rope(keys, head_size(keys))
    fields = sizes(keys) | {
        "num_attention_heads": keys["attention.head_count"],
        "layer_norm_eps": keys["attention.layer_norm_epsilon"],
        "use_parallel_residual": keys["use_parallel_residual"],
        "attention_bias": has_qkv_bias(keys),
        "rope_parameters": rotary.parameters,
    }
    block: Table = {
        **_grouped("attention.query_key_value"),
        "attention.dense": "attn_output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }
    ends = {"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "lm_head": "output"}
    return Architecture("gpt_neox", fields, {**ends, **in_blocks("gpt_neox.layers", block)}, heads_of(keys), (rotary,))


_BLOOM_BLOCK: Table = {
    **_grouped("self_attention.query_key_value"),
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_BLOOM_ENDS: Table = {
    "transformer.word_embeddings": "token_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}


def bloom(keys: Keys) -> Architecture:
    """BLOOM: positions by a slope for each head (ALiBi), so texts may have any length."""
    keys.ignore("context_length")
    keys.expect("feed_forward_length", 4 * keys["embedding_length"])
    fields = {
        "vocab_size": vocabulary(keys),
        "hidden_size": keys["embedding_length"],
        "n_layer": keys["block_count"],
        "n_head": _no_groups(keys),
        "layer_norm_epsilon": keys["attention.layer_norm_epsilon"],
    }
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    ends = {**_BLOOM_ENDS, "transformer.word_embeddings_layernorm": "token_embd_norm"}
    return Architecture(
        "bloom", fields, {**ends, **in_blocks("transformer.h", {**_BLOOM_BLOCK, **norms})}, heads_of(keys)
    )


def falcon(keys: Keys) -> Architecture:
    """Falcon: attention and MLP in parallel, after one common norm (7B, 11B) or a norm each (40B, 180B)."""
    heads, rotary = heads_of(keys), rope(keys, head_size(keys))
    keys.expect("tensor_data_layout", "jploski")
    two_norms = block_has(keys, "attn_norm_2.weight")
    grouped = two_norms or heads.key > 1
    norms = {"ln_mlp": "attn_norm", "ln_attn": "attn_norm_2"} if two_norms else {"input_layernorm": "attn_norm"}
    fields = {
        "vocab_size": vocabulary(keys),
        "hidden_size": keys["embedding_length"],
        "num_hidden_layers": keys["block_count"],
        "num_attention_heads": heads.query,
        "num_kv_heads": heads.key,
        "ffn_hidden_size": keys["feed_forward_length"],
        "max_position_embeddings": keys["context_length"],
        "layer_norm_epsilon": keys["attention.layer_norm_epsilon"],
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "rope_parameters": rotary.parameters,
    }
    table = {**_BLOOM_ENDS, **in_blocks("transformer.h", {**_BLOOM_BLOCK, **norms})}
    return Architecture("falcon", fields, table, heads, (rotary,))


def mpt(keys: Keys) -> Architecture:
    """MPT: norms and linear layers without biases, positions by a slope for each head (ALiBi)."""
    width = keys["embedding_length"]
    slope = keys.get("attention.max_alibi_bias", 0.0)
    fields = {
        "vocab_size": vocabulary(keys),
        "d_model": width,
        "n_heads": _no_groups(keys),
        "n_layers": keys["block_count"],
        "max_seq_len": keys["context_length"],
        "layer_norm_epsilon": keys["attention.layer_norm_epsilon"],
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(slope),
            "clip_qkv": keys.get("attention.clamp_kqv", 0.0) or None,
        },
    }
    if slope <= 0 or slope != int(slope):
        raise keys.refused("attention.max_alibi_bias", slope, "transformers knows only whole numbers above 0 here")
    keys.expect("feed_forward_length", 4 * width)
    block: Table = {
        "norm_1": "attn_norm",
        "norm_2": "ffn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "ffn.up_proj": "ffn_up",
        "ffn.down_proj": "ffn_down",
    }
    ends = {"transformer.wte": "token_embd", "transformer.norm_f": "output_norm", "lm_head": "output"}
    return Architecture("mpt", fields, {**ends, **in_blocks("transformer.blocks", block)})


def phi2(keys: Keys) -> Architecture:
    """Phi-2: attention and MLP in parallel after one norm, biases everywhere."""
    rotary = rope(keys, head_size(keys))
    fields = sizes(keys) | attention_sizes(keys)
    fields |= {"layer_norm_eps": keys["attention.layer_norm_epsilon"], "rope_parameters": rotary.parameters}
    block = {**attention("dense"), "input_layernorm": "attn_norm", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
    table = decoder(block, norm="model.final_layernorm")
    return Architecture("phi", fields, table, heads_of(keys), (rotary,))


def mamba(keys: Keys) -> Architecture:
    """Mamba: a state space model instead of attention."""
    keys.ignore("context_length")
    keys.expect("attention.head_count", 0)
    keys.expect("feed_forward_length", 0)
    keys.expect("ssm.dt_b_c_rms", False)
    width, inner = keys["embedding_length"], keys["ssm.inner_size"]
    if inner % width:
        raise keys.refused("ssm.inner_size", inner, f"transformers knows only multiples of the width, {width}")
    fields = {
        "vocab_size": vocabulary(keys),
        "hidden_size": width,
        "num_hidden_layers": keys["block_count"],
        "expand": inner // width,
        "conv_kernel": keys["ssm.conv_kernel"],
        "state_size": keys["ssm.state_size"],
        "time_step_rank": keys["ssm.time_step_rank"],
        "layer_norm_epsilon": keys["attention.layer_norm_rms_epsilon"],
        "use_bias": block_has(keys, "ssm_in.bias"),
        "use_conv_bias": block_has(keys, "ssm_conv1d.bias"),
    }
    block: Table = {
        "norm": "attn_norm",
        "mixer.A_log": of("ssm_a", by=log_of_negative),
        "mixer.D": of("ssm_d"),
        "mixer.conv1d.weight": of("ssm_conv1d.weight", by=one_channel),
        "mixer.conv1d.bias": of("ssm_conv1d.bias"),
        "mixer.in_proj": "ssm_in",
        "mixer.x_proj": "ssm_x",
        "mixer.dt_proj": "ssm_dt",
        "mixer.out_proj": "ssm_out",
    }
    ends = {"backbone.embeddings": "token_embd", "backbone.norm_f": "output_norm", "lm_head": "output"}
    return Architecture("mamba", fields, {**ends, **in_blocks("backbone.layers", block)})


def lfm2(keys: Keys) -> Architecture:
    """LFM2: short convolutions; attention in the blocks that have key heads."""
    counts = keys.list("attention.head_count_kv")
    if not isinstance(counts, list) or len(counts) != keys["block_count"] or len({*counts} - {0}) != 1:
        raise keys.refused("attention.head_count_kv", counts, "cwtool reads a list with 0 for blocks without attention")
    keys.expect("attention.sliding_window", 0)
    heads, rotary = query_heads(keys), rope(keys, head_size(keys))
    fields = sizes(keys) | {
        "num_attention_heads": heads,
        "num_key_value_heads": max(counts),
        "norm_eps": keys["attention.layer_norm_rms_epsilon"],
        "rope_parameters": rotary.parameters,
        "conv_L_cache": keys["shortconv.l_cache"],
        "conv_bias": any(name.endswith("shortconv.conv.bias") for name in keys.file.tensors),
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["full_attention" if count else "conv" for count in counts],
    }
    block: Table = {
        **attention("out_proj"),
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "operator_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
        "conv.conv.weight": of("shortconv.conv.weight", by=one_channel),
        "conv.conv.bias": of("shortconv.conv.bias"),
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
    }
    table = decoder(block, norm="model.embedding_norm")
    if not keys.has("output_norm.weight"):  # newer files have this name
        table["model.embedding_norm"] = "token_embd_norm"
    return Architecture("lfm2", fields, table, Heads(heads, max(counts)), (rotary,))


ARCHITECTURES: dict[str, Callable[[Keys], Architecture]] = {
    "gpt2": gpt2,
    "gptneox": gptneox,
    "starcoder": starcoder,
    "bloom": bloom,
    "falcon": falcon,
    "mpt": mpt,
    "phi2": phi2,
    "mamba": mamba,
    "lfm2": lfm2,
}
