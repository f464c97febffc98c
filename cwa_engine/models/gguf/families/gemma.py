"""Gemma 1 to 3: norms that multiply by 1 + w, embeddings scaled by the root of their width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cwa_engine.models.gguf.description import (
    GATED_MLP,
    Architecture,
    Table,
    attention,
    attention_sizes,
    decoder,
    has_qkv_bias,
    head_size,
    heads_of,
    layer_types,
    rms_norm,
    same_base,
    sizes,
)
from cwa_engine.models.gguf.keys import Keys
from cwa_engine.models.gguf.layouts import minus_one, of
from cwa_engine.models.gguf.rope import Rope, plain_rope, rope

_LARGEST = {"gemma2": 46, "gemma3": 62}  # number of blocks of the 27B models, whose queries are scaled by width / heads


def _norms(**norms: str) -> Table:
    return {f"{name}.weight": of(f"{tensor}.weight", by=minus_one) for name, tensor in norms.items()}


_ENDS: Table = {"model.norm.weight": of("output_norm.weight", by=minus_one)}
_FIRST: Table = _norms(input_layernorm="attn_norm", post_attention_layernorm="ffn_norm")
_SANDWICH: Table = _norms(
    input_layernorm="attn_norm",
    post_attention_layernorm="post_attention_norm",
    pre_feedforward_layernorm="ffn_norm",
    post_feedforward_layernorm="post_ffw_norm",
)


def _common(keys: Keys, **fields: Any) -> dict[str, object]:
    return {**sizes(keys), **attention_sizes(keys), **rms_norm(keys), "attention_bias": has_qkv_bias(keys), **fields}


def _table(block: Table) -> Table:
    return decoder({**attention(), **GATED_MLP, **block}) | dict(_ENDS)


def _query_scale(keys: Keys) -> tuple[float, str]:
    """(the number by whose root queries are divided, a note). The file lacks it; llama.cpp derives it from the block count."""
    if scale := keys.get("attention.scale", 0.0):
        return float(scale**-2), ""
    width = head_size(keys)
    if keys["block_count"] == _LARGEST[keys.architecture]:
        width = keys["embedding_length"] // keys["attention.head_count"]
    return width, f"queries are divided by the root of {width}, as in llama.cpp: the file does not say"


def gemma(keys: Keys) -> Architecture:
    rotary = rope(keys, head_size(keys))
    return Architecture(
        "gemma", _common(keys, rope_parameters=rotary.parameters), _table(_FIRST), heads_of(keys), (rotary,)
    )


def gemma2(keys: Keys) -> Architecture:
    rotary = rope(keys, head_size(keys))
    same_base(keys, rotary)
    scale, assumed = _query_scale(keys)
    fields = _common(
        keys,
        rope_parameters=rotary.parameters,
        query_pre_attn_scalar=scale,
        attn_logit_softcapping=keys.get("attn_logit_softcapping", 50.0) or None,
        final_logit_softcapping=keys.get("final_logit_softcapping", 30.0) or None,
        sliding_window=keys.get("attention.sliding_window", 4096),
        layer_types=layer_types(keys, 2),
    )
    return Architecture("gemma2", fields, _table(_SANDWICH), heads_of(keys), (rotary,), assumed)


def gemma3(keys: Keys) -> Architecture:
    """Gemma 3: five blocks with a window, then one without. Blocks with a window have their own, unscaled frequencies."""
    size, window = head_size(keys), keys.get("attention.sliding_window", 0)
    rotary, local = rope(keys, size), plain_rope(keys.get("rope.freq_base_swa", 10000.0), size)
    ropes: tuple[Rope, ...] = (rotary, local) if window else (rotary,)
    scale, assumed = _query_scale(keys)
    fields = _common(
        keys,
        rope_parameters={"full_attention": rotary.parameters, "sliding_attention": ropes[-1].parameters},
        query_pre_attn_scalar=scale,
        attn_logit_softcapping=None,
        final_logit_softcapping=keys.get("final_logit_softcapping", 0.0) or None,
        sliding_window=window or keys["context_length"],
        layer_types=layer_types(keys, 6) if window else ["full_attention"] * keys["block_count"],
    )
    if not window:
        keys.ignore("attention.sliding_window_pattern")
    block = {**_SANDWICH, **_norms(**{"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"})}
    return Architecture("gemma3_text", fields, _table(block), heads_of(keys), ropes, assumed)


ARCHITECTURES: dict[str, Callable[[Keys], Architecture]] = {"gemma": gemma, "gemma2": gemma2, "gemma3": gemma3}
