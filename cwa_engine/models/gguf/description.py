"""Descriptions of GGUF architectures in terms of transformers, and the parts that most of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cwa_engine.models.gguf.keys import Keys
from cwa_engine.models.gguf.layouts import (
    Heads,
    Layout,
    TensorSource,
    key_rows,
    of,
    paired_key_rows,
    paired_keys,
    paired_queries,
    paired_query_rows,
    query_rows,
    stacked,
    value_rows,
)
from cwa_engine.models.gguf.rope import Rope

# Name of a parameter -> the tensor it is stored as, or the ways to make it. "*" stands for the block's number. The name
# lacks .weight and .bias if its tensors have the same endings.
Table = Mapping[str, "str | tuple[TensorSource, ...]"]

NO_HEADS = Heads(1, 1)  # for architectures whose layout of tensors does not depend on heads
GATED_MLP = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
QK_NORMS: Table = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True)
class Architecture:
    """A `model_type` of transformers, fields of its config, and how its parameters are made.

    `assumed` is a note for readers of results: what the file does not say and llama.cpp assumes.
    """

    model_type: str
    fields: Mapping[str, Any]
    parameters: Table
    heads: Heads = NO_HEADS
    ropes: tuple[Rope, ...] = ()
    assumed: str = ""


def in_blocks(path: str, table: Table, blocks: str = "blk") -> dict[str, str | tuple[TensorSource, ...]]:
    """The entries of a table for one block, as entries for every block. `path` is the list of blocks in transformers."""

    def numbered(way: str | tuple[TensorSource, ...]) -> str | tuple[TensorSource, ...]:
        if isinstance(way, str):
            return f"{blocks}.*.{way}"
        return tuple(
            TensorSource(tuple(f"{blocks}.*.{t}" for t in made.tensors), made.layout, made.whole) for made in way
        )

    return {f"{path}.*.{parameter}": numbered(way) for parameter, way in table.items()}


def attention(output: str = "o_proj", paired: bool = False) -> dict[str, str | tuple[TensorSource, ...]]:
    """The projections of an attention, from separate tensors or from one with queries, keys and values.

    `paired`: llama.cpp rotates consecutive features, transformers the halves of a head.
    """

    def either(tensor: str, layout: Layout | None, rows: Layout) -> tuple[TensorSource, ...]:
        return of(tensor, by=layout) + of("attn_qkv", by=rows, whole=False)

    return {
        "self_attn.q_proj": either("attn_q", *((paired_queries, paired_query_rows) if paired else (None, query_rows))),
        "self_attn.k_proj": either("attn_k", *((paired_keys, paired_key_rows) if paired else (None, key_rows))),
        "self_attn.v_proj": either("attn_v", None, value_rows),
        f"self_attn.{output}": "attn_output",
    }


def experts(path: str = "mlp.experts") -> dict[str, str | tuple[TensorSource, ...]]:
    """The entries of a stack of experts, with gate and up in one parameter."""
    return {
        f"{path}.gate_up_proj": of("ffn_gate_exps.weight", "ffn_up_exps.weight", by=stacked),
        f"{path}.down_proj": of("ffn_down_exps.weight"),
    }


def expert_width(keys: Keys) -> int:
    """Number of inner features of one expert, from the tensors if the file does not say it."""
    width = keys.tensor("blk.0.ffn_gate_exps.weight").shape[-2]
    keys.expect("expert_feed_forward_length", width, 0)
    return width


def decoder(block: Table, norm: str = "model.norm") -> dict[str, str | tuple[TensorSource, ...]]:
    """The table of a whole decoder: the entries of its blocks, and the usual names outside of the blocks."""
    ends = {"model.embed_tokens": "token_embd", norm: "output_norm", "lm_head": "output"}
    return {**ends, **in_blocks("model.layers", block)}


def sizes(keys: Keys) -> dict[str, object]:
    """Config fields of widths, depth and the longest text."""
    return {
        "vocab_size": vocabulary(keys),
        "hidden_size": keys["embedding_length"],
        "num_hidden_layers": keys["block_count"],
        "intermediate_size": keys["feed_forward_length"],
        "max_position_embeddings": keys["context_length"],
    }


def vocabulary(keys: Keys) -> int:
    """Number of rows of the embedding."""
    shape, width = keys.tensor("token_embd.weight").shape, keys["embedding_length"]
    if shape[1:] != (width,):
        raise keys.refused("embedding_length", width, f"token_embd.weight has the shape {list(shape)}")
    keys.expect("vocab_size", shape[0])
    return shape[0]


def query_heads(keys: Keys) -> int:
    heads = int(keys["attention.head_count"])
    if not heads:
        raise keys.refused("attention.head_count", heads, "this architecture has attention")
    return heads


def heads_of(keys: Keys) -> Heads:
    query = query_heads(keys)
    key = keys.get("attention.head_count_kv", query)
    if not key or query % key:
        raise keys.refused(
            "attention.head_count_kv", key, f"the {query} heads of queries cannot be divided among these"
        )
    return Heads(query, key)


def head_size(keys: Keys) -> int:
    """Number of features of a head: of queries and keys, and the same of values."""
    size = int(keys.get("attention.key_length", keys["embedding_length"] // query_heads(keys)))
    keys.expect("attention.value_length", size)
    return size


def attention_sizes(keys: Keys) -> dict[str, object]:
    heads = heads_of(keys)
    return {"num_attention_heads": heads.query, "num_key_value_heads": heads.key, "head_dim": head_size(keys)}


def rms_norm(keys: Keys) -> dict[str, object]:
    return {"rms_norm_eps": keys["attention.layer_norm_rms_epsilon"]}


def block_has(keys: Keys, *tensors: str) -> bool:
    """Whether the first block has one of these tensors."""
    return any(keys.has(f"blk.0.{tensor}") for tensor in tensors)


def has_qkv_bias(keys: Keys) -> bool:
    return block_has(keys, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias")


def layer_types(keys: Keys, period: int) -> list[str]:
    """The kind of attention of each block: every `period`th has full attention, the others a sliding window."""
    pattern, blocks = keys.list("attention.sliding_window_pattern", period), keys["block_count"]
    if not isinstance(pattern, list):
        pattern = [pattern == 0 or block % pattern < pattern - 1 for block in range(blocks)]
    if len(pattern) != blocks:
        raise keys.refused("attention.sliding_window_pattern", pattern, f"the model has {blocks} blocks")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]


def same_base(keys: Keys, rotary: Rope) -> None:
    """Raises ModelBroken if blocks with a window have another base of rotation than the others."""
    keys.expect("rope.freq_base_swa", rotary.parameters["rope_theta"])
    keys.expect("rope.dimension_count_swa", 2 * len(rotary.frequencies))
