"""GGUF files for tests, written as llama.cpp's converter writes them: names by the package gguf, layouts spelled out here.

Nothing of this is shared with what reads the files: a layout that is read back otherwise shows in the logits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor

from tests.models import VOCABULARY, tiny_tokenizer

_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}

Keys = Mapping[str, Any]
Stored = Callable[[str, Tensor, Any], Tensor]


def _paired(name: str, tensor: Tensor, config: Any) -> Tensor:
    """The rows of each head by turns from its two halves, for queries and keys."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is None:
        return tensor
    size = len(tensor) // count
    order = [
        head * size + row for head in range(count) for pair in range(size // 2) for row in (pair, pair + size // 2)
    ]
    return tensor[order]


def _one_more(name: str, tensor: Tensor, config: Any) -> Tensor:
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _turned(name: str, tensor: Tensor, config: Any) -> Tensor:
    return tensor.T if tensor.dim() == 2 and ".h." in name else tensor


def _qkv_apart(name: str, tensor: Tensor, config: Any) -> Tensor:
    """All queries, then all keys, then all values, of a tensor that has them by groups."""
    if "query_key_value" not in name:
        return tensor
    heads = config.num_attention_heads
    groups = (
        heads if config.model_type != "falcon" else 1 if not config.new_decoder_architecture else config.num_kv_heads
    )
    size, in_group = len(tensor) // (heads + 2 * groups), heads // groups + 2
    rows = torch.arange(len(tensor)).view(groups, in_group, size)
    return tensor[torch.cat([rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()])]


def _mamba(name: str, tensor: Tensor, config: Any) -> Tensor:
    return -tensor.exp() if name.endswith("A_log") else tensor.squeeze() if "conv1d" in name else tensor


def _squeezed(name: str, tensor: Tensor, config: Any) -> Tensor:
    return tensor.squeeze() if "conv.conv" in name else tensor


@dataclass(frozen=True)
class Family:
    """A kind of model: its architecture in GGUF, its config, and the metadata beyond what all have."""

    arch: str
    model_type: str
    sizes: Keys = field(default_factory=dict)
    keys: Keys = field(default_factory=dict)
    stored: Stored = lambda name, tensor, config: tensor
    pre: str = "gpt-2"


_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_EXPERT_KEYS = {"expert_count": 4, "expert_used_count": 2}
_GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.3, "logits_scaling": 2.0}
_GRANITE_KEYS = {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.3, "logit_scale": 2.0}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": VOCABULARY}
_WINDOW = {"sliding_window": 8, "num_hidden_layers": 4}
_WINDOW_KEYS = {"attention.sliding_window": 8}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
_YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}

FAMILIES: dict[str, Family] = {
    "llama": Family("LLAMA", "llama", stored=_paired),
    "llama with biases": Family("LLAMA", "llama", {"attention_bias": True, "mlp_bias": True}, stored=_paired),
    "llama, tied": Family("LLAMA", "llama", {"tie_word_embeddings": True}, stored=_paired),
    "llama, wide heads": Family("LLAMA", "llama", {"head_dim": 24}, stored=_paired),
    "llama with the biases of qwen": Family("LLAMA", "qwen2", stored=_paired),
    "mistral": Family("LLAMA", "mistral", _WINDOW, _WINDOW_KEYS, _paired),
    "mixtral": Family("LLAMA", "mixtral", _EXPERTS, _EXPERT_KEYS, _paired),
    "mistral3": Family(
        "MISTRAL3",
        "ministral3",
        {"rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
        {**_YARN_KEYS, "rope.scaling.yarn_log_multiplier": 1.0, "attention.temperature_scale": 0.1},
        _paired,
    ),
    "arcee": Family("ARCEE", "arcee", stored=_paired),
    "smollm3": Family("SMOLLM3", "smollm3", {"num_hidden_layers": 4}, stored=_paired, pre="smollm"),
    "granite": Family("GRANITE", "granite", _GRANITE, _GRANITE_KEYS, _paired),
    "granitemoe": Family("GRANITE_MOE", "granitemoe", _GRANITE | _EXPERTS, _GRANITE_KEYS | _EXPERT_KEYS, _paired),
    "phi3": Family("PHI3", "phi3", {"sliding_window": 8}, {"attention.sliding_window": 8}),
    "stablelm": Family(
        "STABLELM",
        "stablelm",
        {"partial_rotary_factor": 0.25, "use_qkv_bias": True},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "starcoder2": Family("STARCODER2", "starcoder2", {"sliding_window": None}),
    "nemotron": Family("NEMOTRON", "nemotron", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 8}, _one_more),
    "olmo": Family("OLMO", "olmo", {"clip_qkv": 0.5}, {"attention.clamp_kqv": 0.5}, _paired, pre="olmo"),
    "olmo2": Family("OLMO2", "olmo2"),
    "olmo3": Family("OLMO2", "olmo3", _WINDOW, _WINDOW_KEYS),
    "command-r": Family("COMMAND_R", "cohere", {"logit_scale": 0.25}, {"logit_scale": 0.25}, pre="command-r"),
    "cohere2": Family("COHERE2", "cohere2", _WINDOW | {"logit_scale": 0.25}, _WINDOW_KEYS | {"logit_scale": 0.25}),
    "exaone4": Family("EXAONE4", "exaone4", _WINDOW, _WINDOW_KEYS),
    "glm4": Family("GLM4", "glm4", {"partial_rotary_factor": 0.5, "head_dim": 16}, {"rope.dimension_count": 8}),
    "ernie4_5": Family("ERNIE4_5", "ernie4_5"),
    "hunyuan": Family("HUNYUAN_DENSE", "hunyuan_v1_dense", {"head_dim": 16}),
    "seed_oss": Family("SEED_OSS", "seed_oss", {"head_dim": 16}),
    "qwen2": Family("QWEN2", "qwen2", pre="qwen2"),
    "qwen3": Family("QWEN3", "qwen3", {"head_dim": 24}),
    "qwen2moe": Family(
        "QWEN2MOE",
        "qwen2_moe",
        _EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
        _EXPERT_KEYS | {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48},
    ),
    "qwen3moe": Family(
        "QWEN3MOE",
        "qwen3_moe",
        _EXPERTS | {"moe_intermediate_size": 32, "norm_topk_prob": True, "head_dim": 16},
        _EXPERT_KEYS | {"expert_feed_forward_length": 32},
    ),
    "olmoe": Family("OLMOE", "olmoe", _EXPERTS, _EXPERT_KEYS),
    "phimoe": Family("PHIMOE", "phimoe", _EXPERTS | {"attention_bias": True, "lm_head_bias": True}, _EXPERT_KEYS),
    "gpt-oss": Family(
        "GPT_OSS",
        "gpt_oss",
        {**_EXPERTS, "sliding_window": 8, "head_dim": 16, "rope_parameters": {**_YARN, "truncate": False}},
        {**_EXPERT_KEYS, **_WINDOW_KEYS, **_YARN_KEYS, "expert_feed_forward_length": 96},
    ),
    "gemma": Family("GEMMA", "gemma", {"head_dim": 16}, stored=_one_more),
    "gemma2": Family(
        "GEMMA2",
        "gemma2",
        {**_WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
        {**_WINDOW_KEYS, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0},
        _one_more,
    ),
    "gemma3": Family(
        "GEMMA3",
        "gemma3_text",
        {**_WINDOW, "num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16},
        {**_WINDOW_KEYS, "rope.freq_base": 1e6},
        _one_more,
    ),
    "gpt2": Family("GPT2", "gpt2", _GPT2, stored=_turned),
    "starcoder": Family("STARCODER", "gpt_bigcode", _GPT2, {"attention.head_count_kv": 1}, pre="starcoder"),
    "gptneox": Family(
        "GPTNEOX",
        "gpt_neox",
        {"rotary_pct": 0.5, "use_parallel_residual": False},
        {"rope.dimension_count": 8, "use_parallel_residual": False},
        _qkv_apart,
        "olmo",
    ),
    "bloom": Family("BLOOM", "bloom", {"n_layer": 2, "n_head": 4}, stored=_qkv_apart, pre="bloom"),
    "falcon 7B": Family("FALCON", "falcon", {}, {"tensor_data_layout": "jploski"}, _qkv_apart, "falcon"),
    "falcon 40B": Family(
        "FALCON", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, stored=_qkv_apart, pre="falcon"
    ),
    "mpt": Family(
        "MPT",
        "mpt",
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
        {"attention.max_alibi_bias": 8.0},
        pre="mpt",
    ),
    "phi2": Family("PHI2", "phi", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 8}),
    "mamba": Family(
        "MAMBA",
        "mamba",
        {"state_size": 8, "intermediate_size": 128},
        {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 8, "ssm.time_step_rank": 4},
        _mamba,
        "olmo",
    ),
    "lfm2": Family(
        "LFM2",
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        {"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
        _squeezed,
        "lfm2",
    ),
}


def tiny(family: Family, **changed: Any) -> Any:
    """A model of this family with random weights, large enough that every one of them matters."""
    known = transformers.AutoConfig.for_model(family.model_type)
    plain = {name: value for name, value in _TINY.items() if hasattr(known, name)}
    config = transformers.AutoConfig.for_model(family.model_type, **{**plain, **family.sizes, **changed})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn_like(parameter)
            parameter.copy_(drawn * 0.15 if parameter.dim() > 1 else parameter + drawn * 0.1)
    return model


def tensors_of(model: Any, family: Family) -> dict[str, Tensor]:
    """The tensors of the file, by the names that they have there."""
    arch = gguf.MODEL_ARCH[family.arch]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    found = {}
    for name, tensor in model.named_parameters():
        for part, numbers in _apart(name, tensor.detach(), family):
            spellings = (part, part.replace("mlp.router", "block_sparse_moe.gate"), part.removeprefix("transformer."))
            mapped = next(filter(None, (names.get_name(one, (".weight", ".bias")) for one in spellings)), None)
            assert mapped, f"the package gguf has no name for {part}"
            found[mapped] = family.stored(name, numbers, model.config).contiguous()
    return found


def _apart(name: str, tensor: Tensor, family: Family) -> list[tuple[str, Tensor]]:
    """Gate and up of experts one by one, and names that the package gguf knows."""
    name = name.replace("block_sparse_moe.experts", "mlp.experts").replace("block_sparse_moe.router", "mlp.router")
    name = name.replace(".sinks", ".sinks.weight")
    if ".experts." not in name:
        return [(name, tensor)]
    bias, by_turns = name.endswith("_bias"), family.model_type == "gpt_oss"
    name, ending = name.removesuffix("_bias"), ".bias" if bias else ".weight"
    if by_turns and not bias:
        tensor = tensor.transpose(1, 2)
    if "gate_up" not in name:
        return [(name + ending, tensor)]
    gate, up = (tensor[:, 0::2], tensor[:, 1::2]) if by_turns else tensor.chunk(2, dim=1)
    return [(name.replace("gate_up", part) + ending, numbers) for part, numbers in (("gate", gate), ("up", up))]


def metadata_of(model: Any, family: Family) -> dict[str, Any]:
    """What the file says, without the prefix of its architecture, but for the tokenizer."""
    config = model.config
    known = config.to_dict()

    def first(*names: str) -> Any:
        return next((known[name] for name in names if known.get(name) is not None), None)

    width = first("hidden_size", "n_embd", "d_model")
    heads = first("num_attention_heads", "n_head", "n_heads") or 0
    rope = known.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    said = {
        "context_length": first("max_position_embeddings", "n_positions", "max_seq_len") or 256,
        "embedding_length": width,
        "block_count": first("num_hidden_layers", "n_layer", "n_layers"),
        "feed_forward_length": first("intermediate_size", "n_inner") or 4 * width,
        "attention.head_count": heads,
        "attention.head_count_kv": first("num_key_value_heads", "num_kv_heads") or heads,
        "attention.layer_norm_rms_epsilon": first("rms_norm_eps"),
        "attention.layer_norm_epsilon": first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "rope.freq_base": rope.get("rope_theta"),
        "attention.key_length": known.get("head_dim"),
        "attention.value_length": known.get("head_dim"),
    }
    match family.model_type:
        case "mamba":
            said |= {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": None}
            said["attention.layer_norm_rms_epsilon"] = said.pop("attention.layer_norm_epsilon")
        case "olmo":
            said["attention.layer_norm_epsilon"] = 1e-5
        case "nemotron":
            said["attention.layer_norm_epsilon"] = config.norm_eps
        case "lfm2":
            said["attention.layer_norm_rms_epsilon"] = config.norm_eps
        case "falcon" if not config.new_decoder_architecture:
            said["attention.head_count_kv"] = 1
    return {key: value for key, value in {**said, **family.keys}.items() if value is not None}


def write_gguf(
    path: Path,
    arch: str,
    keys: Keys,
    tensors: Mapping[str, Tensor | np.ndarray[Any, Any]],
    tokenizer: Keys,
    general: Keys = {},  # noqa: B006  # never changed
    raw: Mapping[str, tuple[np.ndarray[Any, Any], str]] = {},
    shards: int = 1,
) -> Path:
    """Write a file: `keys` get the prefix of the architecture, `tokenizer` that of tokenizer.ggml; None drops one.

    `raw` has the codes of quantised tensors, and their kind. With several shards their names are made from `path`'s.
    """
    name = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]]
    stem = path if shards == 1 else path.with_name(f"{path.stem}.gguf")
    writer = gguf.GGUFWriter(stem, name, split_max_tensors=-(-len(tensors) // shards) if shards > 1 else 0)
    every = {**general, **{f"{name}.{key}": value for key, value in keys.items()}}
    every |= {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    for key, value in every.items():
        if value is not None:
            _add(writer, key, value)
    for tensor, numbers in tensors.items():
        codes, kind = raw.get(tensor, (np.asarray(numbers, dtype=np.float32), "F32"))
        writer.add_tensor(tensor, codes, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stem if shards == 1 else sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))[0]


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if isinstance(value, list | tuple):
        writer.add_array(key, value)
    else:
        kinds[type(value)](key, value)


def byte_level_vocabulary(pre: str = "gpt-2", size: int = VOCABULARY) -> dict[str, Any]:
    """The tokenizer of the small models in tests, as a file has it."""
    saved = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(saved["vocab"], key=saved["vocab"].get)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] + [1] * (len(saved["vocab"]) - 1) + [5] * (size - len(saved["vocab"])),
        "merges": [" ".join(merge) for merge in saved["merges"]],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "add_bos_token": False,
    }


def pairs_vocabulary(texts: Sequence[str], pre: str) -> dict[str, Any]:
    """Bytes, and every two bytes that stand side by side in a text: which of them merge shows where the text is cut."""
    characters = bytes_to_unicode()
    pairs = dict.fromkeys(
        (characters[first], characters[second]) for text in texts for first, second in itertools.pairwise(text.encode())
    )
    tokens = ["<|end|>", *characters.values(), *map("".join, pairs)]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [3] + [1] * (len(tokens) - 1),
        "merges": [" ".join(pair) for pair in pairs],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's character for each byte: printable ones stand for themselves, the rest for those from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def pieces_vocabulary(texts: Sequence[str]) -> dict[str, Any]:
    """As sentencepiece has it: bytes, characters, and beginnings of words, the shorter and earlier with the higher score."""
    words = [f"▁{word}" for text in texts for word in text.split(" ") if word.isascii() and word.isprintable()]
    beginnings = dict.fromkeys(word[:end] for end in range(2, 7) for word in words if len(word) >= end)
    characters = dict.fromkeys(
        character for text in texts for character in text.replace(" ", "▁") if "\0" < character < "ࠀ"
    )
    normal = [*beginnings, "▁▁", "▁▁▁▁", *characters, "▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal, "<|user|>"]
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": [0.0] * 259 + [-float(number) for number in range(len(normal))] + [0.0],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(normal) + [4],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def write_family(path: Path, family: Family, model: Any, **options: Any) -> Path:
    """The model as a file. `keys`, `tokenizer` and `tensors` among the options change what would be written."""
    keys = {**metadata_of(model, family), **options.pop("keys", {})}
    tokenizer = {**byte_level_vocabulary(family.pre), **options.pop("tokenizer", {})}
    tensors = {**tensors_of(model, family), **options.pop("tensors", {})}
    left = {name: numbers for name, numbers in tensors.items() if numbers is not None}
    return write_gguf(path, family.arch, keys, left, tokenizer, **options)
