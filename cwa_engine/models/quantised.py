"""Quantised checkpoints, restored exactly to plain float32 weights: one function for each format.

A quantised weight is stored as several tensors: codes, and the scales that turn them into numbers. Each function below is
the formula of one format. Only weights are restored; rounding of activations is not imitated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwa_engine.base.errors import ModelBroken
from cwa_engine.models.checkpoint import StoredTensor

Settings = Mapping[str, Any]  # the quantization_config
Parts = Mapping[str, Tensor]  # the stored tensors of one weight; "codes" is the tensor with the weight's own name

# 4-bit floats with 2 bits of exponent and 1 of mantissa (OCP Microscaling formats, table 5); the upper half is negative.
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # the column of each 4 bits of a word, among eight neighbours

# Tensors of the activations and of the cache, on which the weights do not depend.
_OF_ACTIVATIONS = re.compile(
    r"\.(input_scale|output_scale|activation_scale|input_global_scale|input_zero_point|[qkv]_scale|[kv]_proj\.output_scale)$"
)
# Files of older quantisers for what newer ones write into config.json.
_OTHER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


@dataclass(frozen=True)
class Scheme:
    """One format. `part` matches names like WEIGHT_scale: its group "of" is the weight's name, its group "part" the rest."""

    name: str
    part: re.Pattern[str]
    restore: Callable[[Parts, Settings], Tensor]
    suffix: str = ""  # appended to "of" for the name of the restored weight


@dataclass(frozen=True)
class Restored:
    """Plain tensors by the names of the architecture, and the format they were stored in."""

    tensors: dict[str, StoredTensor]
    name: str  # "bitsandbytes nf4"; empty if nothing was quantised
    note: str  # for the reader of the results


def take_settings(config: Any, folder: Path) -> Settings | None:
    """The quantisation settings of a folder, from its config or from a file of the quantiser; None for plain weights.

    Removes the settings from `config`, so that transformers builds a model with plain weights.
    """
    found = None
    for holder in (config, config.get_text_config(decoder=True)):
        if settings := holder.__dict__.pop("quantization_config", None):
            found = dict(settings if isinstance(settings, Mapping) else settings.to_dict())
    if found:
        return found
    for name, method in _OTHER_FILES.items():
        if (folder / name).is_file():
            found = dict(json.loads((folder / name).read_text("utf-8")))
            return {"quant_method": method, **found, **found.get("quantization", {})}
    return None


def restore(stored: Mapping[str, StoredTensor], settings: Settings | None, model: str) -> Restored:
    """The checkpoint with plain weights. Each quantised weight is restored when it is loaded.

    Raises ModelBroken for an unknown format; loading a weight raises it if parts of the weight are missing.
    """
    if settings is None:
        return Restored(dict(stored), "", "")
    scheme = scheme_of(settings, model)
    groups: dict[str, dict[str, StoredTensor]] = {}
    plain = {}
    for name, tensor in stored.items():
        if _OF_ACTIVATIONS.search(name):
            continue
        if match := scheme.part.fullmatch(name):
            groups.setdefault(match["of"] + scheme.suffix, {})[match["part"]] = tensor
        else:
            plain[name] = tensor
    for name, parts in groups.items():
        if name in plain:
            parts["codes"] = plain.pop(name)
        plain[name] = _together(name, parts, scheme, settings)
    if not groups:
        return Restored(plain, "", f"its config says {scheme.name}, but its weights are stored as plain floats")
    note = f"analysed as dequantised from {scheme.name}: {len(groups)} of its tensors; activations are not quantised"
    return Restored(plain, scheme.name, note)


def _together(name: str, parts: Mapping[str, StoredTensor], scheme: Scheme, settings: Settings) -> StoredTensor:
    def load() -> Tensor:
        try:
            return scheme.restore({part: tensor.load() for part, tensor in parts.items()}, settings).contiguous()
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise ModelBroken(
                f"{name} cannot be restored from {scheme.name}: {_reason(error)} (stored are {', '.join(sorted(parts))})",
                hint="quantise or download the model again, or give the one it was made from",
            ) from error

    return StoredTensor((), torch.float32, sum(tensor.size_bytes for tensor in parts.values()), load)


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]


def scheme_of(settings: Settings, model: str) -> Scheme:
    """The format of a quantization_config. Raises ModelBroken for a format that cannot be restored exactly."""
    method = str(settings.get("quant_method", "")).lower()
    if method == "bitsandbytes" or settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        if settings.get("load_in_4bit"):
            return _scheme(f"bitsandbytes {settings.get('bnb_4bit_quant_type', 'fp4')}", _BNB4, _bitsandbytes_4bit)
        return _scheme("bitsandbytes int8", _BNB8, _bitsandbytes_8bit, ".weight")
    bits = settings.get("bits", settings.get("w_bit"))
    match method:
        case "gptq" if bits in (2, 3, 4, 8) and _gptq_format(settings) in ("gptq", "gptq_v2") and not _varies(settings):
            return _scheme(f"GPTQ {bits}-bit", _PACKED_LINEAR, _gptq, ".weight")
        case "awq" if bits == 4 and str(settings.get("version", "gemm")).lower() == "gemm":
            return _scheme("AWQ 4-bit", _PACKED_LINEAR, _awq, ".weight")
        case "fp8" | "fbgemm_fp8":
            return _scheme("FP8", _SCALED, _scaled_codes)
        case "modelopt" if settings.get("quant_algo") == "FP8":
            return _scheme("FP8 (ModelOpt)", _SCALED, _scaled_codes)
        case "modelopt" if settings.get("quant_algo") == "NVFP4":
            return _scheme("NVFP4 (ModelOpt)", _SCALED, _nvfp4_of_modelopt)
        case "mxfp4":
            return _scheme("MXFP4", _BLOCKS, _mxfp4)
        case "compressed-tensors":
            if found := _compressed_scheme(settings):
                return found
    described = ", ".join(f"{key} {settings[key]}" for key in _SAYS if settings.get(key) is not None) or "no method"
    raise ModelBroken(
        f"{model} is quantised in a way that cannot be undone exactly here: {described}",
        hint="give the model it was made from, or save it dequantised and remove quantization_config from config.json",
    )


_SAYS = ("quant_method", "format", "quant_algo", "bits", "checkpoint_format", "version", "dynamic", "config_groups")
_BNB4 = r"(?P<of>.+)\.(?P<part>absmax|quant_map|nested_absmax|nested_quant_map|quant_state)(\.bitsandbytes__(nf4|fp4))?"
_BNB8 = r"(?P<of>.+)\.(?P<part>SCB|weight_format)"
_PACKED_LINEAR = r"(?P<of>.+)\.(?P<part>qweight|qzeros|scales|g_idx)"
_SCALED = r"(?P<of>.+)_(?P<part>scale_inv|scale|scale_2)"
_BLOCKS = r"(?P<of>.+)_(?P<part>blocks|scales)"
_COMPRESSED = r"(?P<of>.+\.weight)_(?P<part>packed|scale|zero_point|shape|g_idx|global_scale)"


def _scheme(name: str, part: str, restore: Callable[[Parts, Settings], Tensor], suffix: str = "") -> Scheme:
    return Scheme(name, re.compile(part), restore, suffix)


def _gptq_format(settings: Settings) -> str:
    return str(settings.get("checkpoint_format") or "gptq")


def _varies(settings: Settings) -> bool:
    """Whether some layers have other settings than the rest."""
    return bool(settings.get("dynamic"))


def _compressed_scheme(settings: Settings) -> Scheme | None:
    """The format of compressed-tensors: all weights of one kind, none sparse, none rotated; None for any other."""
    sparse = settings.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense" or settings.get("transform_config"):
        return None
    kinds = [group.get("weights") or {} for group in (settings.get("config_groups") or {}).values()]
    if not kinds or any(kind != kinds[0] for kind in kinds):
        return None
    kind, form = kinds[0], settings.get("format")
    name = f"compressed-tensors {form}, {kind.get('num_bits')}-bit {kind.get('type')}"
    match form:
        case "int-quantized" | "float-quantized" | "naive-quantized":
            restore = _scaled_codes
        case "pack-quantized" if kind.get("num_bits") in (2, 4, 8):
            restore = _packed_integers
        case "nvfp4-pack-quantized":
            restore = _nvfp4_compressed
        case _:
            return None
    block = {"weight_block_size": kind["block_structure"]} if kind.get("block_structure") else {}
    return _scheme(name, _COMPRESSED, lambda parts, settings: restore(parts, {**kind, **block}))


def _bitsandbytes_4bit(parts: Parts, settings: Settings) -> Tensor:
    """w = quant_map[code] * absmax of the block; nested: absmax = nested_quant_map[code] * nested_absmax + offset."""
    state = json.loads(parts["quant_state"].numpy().tobytes())
    codes = parts["codes"].contiguous().view(-1).view(torch.uint8)  # they may be stored under any dtype
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        scale = parts["nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(absmax)]
        absmax = parts["nested_quant_map"][absmax.long()] * scale + state["nested_offset"]
    values = parts["quant_map"][_nibbles(codes, high_first=True).long()]
    scale = absmax.repeat_interleave(state["blocksize"])[: len(values)]
    weights: Tensor = (values.float() * scale.float())[: math.prod(state["shape"])]
    return weights.reshape(state["shape"])


def _bitsandbytes_8bit(parts: Parts, settings: Settings) -> Tensor:
    """w = code * SCB of its row / 127 (LLM.int8(), Dettmers et al. 2022)."""
    if int(parts.get("weight_format", torch.tensor(0))):
        raise ValueError("its codes are not stored row by row")
    return parts["codes"].float() * parts["SCB"].float()[:, None] / 127


def _gptq(parts: Parts, settings: Settings) -> Tensor:
    """w = scale * (code - zero), with scale and zero of the group of in_features. Format "gptq" stores zero - 1."""
    bits, scales = int(settings["bits"]), parts["scales"].float()  # [groups, out]
    in_features = parts["qweight"].shape[0] * 32 // bits
    codes = _unpacked(parts["qweight"].T, bits, in_features)  # [out, in]
    zeros = _unpacked(parts["qzeros"], bits, scales.shape[1])  # [groups, out]
    if _gptq_format(settings) == "gptq":
        zeros = (zeros + 1) % 2**bits
    group = parts["g_idx"].long() if "g_idx" in parts else _groups(in_features, int(settings.get("group_size", -1)))
    return (codes - zeros[group].T) * scales[group].T


def _awq(parts: Parts, settings: Settings) -> Tensor:
    """w = scale * (code - zero), with scale and zero of the group of in_features; columns are interleaved in each word."""
    in_features, scales = parts["qweight"].shape[0], parts["scales"].float()  # [groups, out]
    codes, zeros = (_unpacked(parts[name], 4, scales.shape[1]) for name in ("qweight", "qzeros"))
    columns = torch.arange(scales.shape[1]).view(-1, 8)[:, torch.tensor(_AWQ_ORDER).argsort()].flatten()
    group = _groups(in_features, int(settings.get("group_size", settings.get("q_group_size", -1))))
    return ((codes[:, columns] - zeros[:, columns][group]) * scales[group]).T


def _scaled_codes(parts: Parts, settings: Settings) -> Tensor:
    """w = (code - zero) * scale, with one scale for the tensor, each row, each group of a row, or each block."""
    codes = parts["codes"].float()
    scale = (
        parts["scale_inv"] if "scale_inv" in parts else parts["scale"]
    )  # in spite of its name, scale_inv is a factor too
    zero = parts.get("zero_point")
    if zero is not None:
        codes = codes - _spread(zero, codes.shape, settings)
    return codes * _spread(scale, codes.shape, settings)


def _packed_integers(parts: Parts, settings: Settings) -> Tensor:
    """w = (code - zero) * scale, with codes and zeros in 32-bit words, shifted up by half of their range."""
    bits, (rows, columns) = int(settings["num_bits"]), parts["shape"].tolist()
    half, scale = 2 ** (bits - 1), parts["scale"].float()
    codes: Tensor = _unpacked(parts["packed"], bits, columns) - half
    if "zero_point" in parts:
        zeros = (_unpacked(parts["zero_point"].T, bits, rows) - half).T
        codes = codes - _by_group(zeros, parts, codes.shape, settings)
    return codes * _by_group(scale, parts, codes.shape, settings)


def _by_group(values: Tensor, parts: Parts, shape: torch.Size, settings: Settings) -> Tensor:
    """Values of groups of in_features, repeated for each weight; `g_idx` has the group of each in_feature."""
    return values[:, parts["g_idx"].long()] if "g_idx" in parts else _spread(values, shape, settings)


def _nvfp4_compressed(parts: Parts, settings: Settings) -> Tensor:
    """w = value * (scale of the group of 16) / (scale of the tensor)."""
    return _fp4(parts["packed"], parts["scale"].float()) / parts["global_scale"].float()


def _nvfp4_of_modelopt(parts: Parts, settings: Settings) -> Tensor:
    """w = value * (scale of the group of 16) * (scale of the tensor)."""
    return _fp4(parts["codes"], parts["scale"].float()) * parts["scale_2"].float()


def _mxfp4(parts: Parts, settings: Settings) -> Tensor:
    """w = value * 2^(scale - 127), one scale for 32 values. Blocks: [experts, out, groups, 16]; weight: [experts, in, out]."""
    exponents = torch.ldexp(torch.ones(parts["scales"].shape), parts["scales"].int() - 127)
    return _fp4(parts["blocks"].flatten(-2), exponents).mT


def _fp4(packed: Tensor, scale: Tensor) -> Tensor:
    """4-bit floats (the low half of a byte is the first) times the scale of their group. [..., in]"""
    values = _E2M1[_nibbles(packed, high_first=False).long()]
    return values * scale.repeat_interleave(values.shape[-1] // scale.shape[-1], -1)


def _nibbles(packed: Tensor, high_first: bool) -> Tensor:
    """The two 4-bit halves of each byte, along the last axis."""
    halves = [packed & 0xF, packed >> 4]
    return torch.stack(halves[::-1] if high_first else halves, -1).flatten(-2)


def _unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """`count` numbers of `bits` bits from each row of 32-bit words, lowest bits first; a number may cross two words."""
    start = torch.arange(count) * bits
    word, shift = start // 32, start % 32
    wide = words.long() & 0xFFFFFFFF
    two_words = wide[..., word] | (wide[..., (word + 1).clamp(max=words.shape[-1] - 1)] << 32)
    numbers: Tensor = torch.bitwise_right_shift(two_words, shift) & (2**bits - 1)
    return numbers


def _spread(values: Tensor, shape: torch.Size, settings: Settings) -> Tensor:
    """Scales of a tensor, of its rows or of its blocks, repeated for each weight."""
    values = values.float()
    if values.numel() == 1:
        return values.view(1)
    while values.dim() < len(shape):  # one scale for each row, or each expert
        values = values.unsqueeze(-1)
    block = settings.get("weight_block_size") or [None, None]
    for axis, size in zip((-2, -1), block, strict=True):
        if values.shape[axis] in (1, shape[axis]):
            continue
        length = size or shape[axis] // values.shape[axis]
        if -(-shape[axis] // length) != values.shape[axis]:
            raise ValueError(f"{values.shape[axis]} scales do not fit {shape[axis]} features")
        values = values.repeat_interleave(length, axis).narrow(axis, 0, shape[axis])
    return values


def _groups(in_features: int, size: int) -> Tensor:
    return torch.arange(in_features) // (size if size > 0 else in_features)
