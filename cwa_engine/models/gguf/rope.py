"""Rotary positions: from the metadata of a GGUF file to `rope_parameters` of transformers, and a check that both agree.

Pair i of a head's n rotated features is rotated by `position * frequency[i]`, and the result is multiplied by a magnitude.
With base b, factor s of linear scaling and YaRN, the file's divisors d and YaRN's ramp r (Peng et al. 2023, section 3.2):

    frequency[i] = b^(-2i/n) / d[i] * (r[i]/s + 1 - r[i])       r = 1 without YaRN

Keys and their defaults: src/llama-model.cpp and src/llama-context.cpp of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cwa_engine.base.errors import ModelBroken
from cwa_engine.models.gguf.keys import Keys

_TOLERANCE = 1e-5  # relative difference between two ways of computing a frequency in float32,
_SMALLEST = 1e-10  # and absolute difference, in radians per token
_LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_YARN = ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")


@dataclass(frozen=True)
class Rope:
    """`parameters` for the config of transformers, with the `frequencies` [n/2] and the `magnitude` that must result."""

    parameters: dict[str, Any]
    frequencies: Tensor
    magnitude: float = 1.0


@dataclass(frozen=True)
class _Scaling:
    """The scaling of a file, with llama.cpp's defaults for missing keys."""

    kind: str
    factor: float
    original: int  # tokens of texts in pretraining
    longest: int  # tokens
    magnitude: float | None
    yarn: dict[str, float | None]


def plain_rope(base: float, head_size: int) -> Rope:
    """Rotation of all features of a head, without scaling."""
    return Rope({"rope_type": "default", "rope_theta": base}, _base_frequencies(base, head_size))


def rope(keys: Keys, head_size: int, truncate: bool = True) -> Rope:
    """The rotation that a file describes. `truncate` rounds the ends of YaRN's ramp to whole features.

    Raises ModelBroken for a rotation that transformers cannot do.
    """
    base, rotated = keys.get("rope.freq_base", 10000.0), keys.get("rope.dimension_count", head_size)
    if not rotated or rotated % 2 or rotated > head_size:
        raise keys.refused("rope.dimension_count", rotated, f"a head has {head_size} features, rotated in pairs")
    plain = plain_rope(base, rotated)
    if rotated != head_size:
        plain.parameters["partial_rotary_factor"] = _part(rotated, head_size)
    said = _scaling(keys)
    divisors = keys.loaded("rope_freqs.weight")
    short, long = keys.loaded("rope_factors_short.weight"), keys.loaded("rope_factors_long.weight")
    match said.kind:
        # Files of Phi-3 have the factors but no kind of scaling.
        case "longrope" | "linear" | "none" if short is not None and long is not None and divisors is None:
            return _longrope(plain, short, long, said)
        case "yarn" if short is None and long is None and divisors is None:
            keys.expect("rope.scaling.yarn_ext_factor", 1.0)
            return _yarn(plain, said, truncate)
        case "linear" | "none" if short is None and long is None:
            divisor = torch.full_like(plain.frequencies, said.factor if said.kind == "linear" else 1.0)
            if divisors is not None:
                divisor = divisor * _of_length(keys, divisors, len(divisor))
            return _divided(plain, divisor, said)
    raise keys.refused(
        "rope.scaling.type", said.kind, "cwtool does not know this scaling, or the tensors for it are missing"
    )


def _scaling(keys: Keys) -> _Scaling:
    keys.ignore("rope.scaling.finetuned")
    kind = keys.get("rope.scaling.type", "linear")
    yarn = {name: keys.get(f"rope.scaling.yarn_{name}") for name in _YARN}
    if kind != "yarn" and any(value is not None for value in yarn.values()):
        raise keys.refused("rope.scaling.type", kind, "but it also has numbers for yarn")
    return _Scaling(
        kind=kind,
        factor=keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0)) or 1.0,
        original=keys.get("rope.scaling.original_context_length", 0) or keys["context_length"],
        longest=keys["context_length"],
        magnitude=keys.get("rope.scaling.attn_factor"),
        yarn=yarn,
    )


def _part(rotated: int, head_size: int) -> float:
    """The factor with int(head_size * factor) == rotated."""
    part = rotated / head_size
    return part if int(head_size * part) == rotated else math.nextafter(part, 2)


def _base_frequencies(base: float, rotated: int) -> Tensor:
    return 1.0 / (base ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated))


def _of_length(keys: Keys, divisors: Tensor, length: int) -> Tensor:
    if divisors.shape != (length,):
        raise ModelBroken(
            f"rope_freqs.weight of {keys.file.path.name} has {divisors.numel()} factors for {length} frequencies",
            hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
        )
    return divisors


def _divided(plain: Rope, divisor: Tensor, said: _Scaling) -> Rope:
    """One of transformers' kinds of scaling if it gives these frequencies exactly, else the frequencies themselves."""
    frequencies, magnitude = plain.frequencies / divisor, said.magnitude or 1.0
    if magnitude == 1.0:
        if bool((divisor == 1).all()):
            return plain
        if bool((divisor == divisor[0]).all()):
            return Rope({**plain.parameters, "rope_type": "linear", "factor": float(divisor[0])}, frequencies)
        if llama3 := _llama3(plain.frequencies, divisor, said.original):
            return Rope({**plain.parameters, **llama3}, frequencies)
    factors = divisor.tolist()
    exactly = {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": magnitude,
        "original_max_position_embeddings": said.original,
    }
    return Rope({**plain.parameters, **exactly}, frequencies, magnitude)


def _llama3(frequencies: Tensor, divisor: Tensor, original: int) -> dict[str, object] | None:
    """The parameters of Llama 3.1's scaling that give these divisors up to rounding; None if there are none.

    The converter writes only the divisors. Frequencies with a wavelength above the length of pretraining texts are divided
    by the factor, those with one below a quarter of it are not; between the two the divisor changes smoothly.
    """
    factor, waves = float(divisor.max()), 2 * math.pi / frequencies
    low, high = _LLAMA3_BANDS.values()
    for length in (8192, original, *(2**power for power in range(4, 21))):
        smooth = ((length / waves - low) / (high - low)).clamp(0, 1)
        if torch.allclose(1 / ((1 - smooth) / factor + smooth), divisor, rtol=3e-7, atol=0):
            bands = {**_LLAMA3_BANDS, "original_max_position_embeddings": length}
            return {"rope_type": "llama3", "factor": factor, **bands}
    return None


def _yarn(plain: Rope, said: _Scaling, truncate: bool) -> Rope:
    base, rotated = plain.parameters["rope_theta"], 2 * len(plain.frequencies)
    fast, slow = said.yarn["beta_fast"] or 32.0, said.yarn["beta_slow"] or 1.0

    def feature_rotated(times: float) -> float:
        """The feature that makes this many turns within a text of pretraining."""
        return rotated * math.log(said.original / (times * 2 * math.pi)) / (2 * math.log(base))

    first, last = feature_rotated(fast), feature_rotated(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    ramp = ((torch.arange(rotated // 2) - first) / max(last - first, 0.001)).clamp(0, 1)
    magnitude = _yarn_magnitude(said)
    yarn = {
        "rope_type": "yarn",
        "factor": said.factor,
        "original_max_position_embeddings": said.original,
        "beta_fast": fast,
        "beta_slow": slow,
        "attention_factor": magnitude,
        "truncate": truncate,
    }
    return Rope({**plain.parameters, **yarn}, plain.frequencies * (ramp / said.factor + 1 - ramp), magnitude)


def _yarn_magnitude(said: _Scaling) -> float:
    """The number in the file, else 0.1 ln(s) + 1; divided by 0.1 m ln(s) + 1 if the file has a multiplier m."""
    own, multiplier = said.yarn["attn_factor"], said.yarn["log_multiplier"] or 0.0
    if own is None:
        grown = 0.1 * math.log(max(said.factor, 1.0))
        own = (grown + 1) / (multiplier * grown + 1)
    return own * (said.magnitude or 1.0)


def _longrope(plain: Rope, short: Tensor, long: Tensor, said: _Scaling) -> Rope:
    """LongRoPE: other factors for texts longer than in pretraining. The default magnitude is that of Ding et al. 2024."""
    magnitude, scale = said.magnitude, said.longest / said.original
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(scale) / math.log(said.original)) if scale > 1 else 1.0
    longrope = {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "attention_factor": magnitude,
        "original_max_position_embeddings": said.original,
    }
    return Rope({**plain.parameters, **longrope}, plain.frequencies / short, magnitude)


def check_rope(model: PreTrainedModel, ropes: tuple[Rope, ...], name: str) -> None:
    """Compare the frequencies of transformers with those of the file. `model` may be without memory.

    Raises ModelBroken if the model class does not follow its config.
    """
    seen = []
    for module in model.modules():
        if not any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False)):
            continue
        computed: Any = type(module)(config=module.config)  # a new module on the CPU, with values
        for buffer, value in computed.named_buffers(recurse=False):
            if buffer.endswith("inv_freq") and "original" not in buffer:
                kind_of_block = buffer.removesuffix("inv_freq")
                seen.append((value, getattr(computed, f"{kind_of_block}attention_scaling", 1.0)))
    agree = all(any(_same(rope, *one) for rope in ropes) for one in seen)
    if not agree or bool(ropes) != bool(seen):
        raise ModelBroken(
            f"{type(model).__name__} of transformers does not rotate positions as {name} says",
            hint="give the model that the file was made from, as a folder or Hub id",
        )


def _same(rope: Rope, frequencies: Tensor, magnitude: float) -> bool:
    return (
        frequencies.shape == rope.frequencies.shape
        and torch.allclose(frequencies, rope.frequencies, rtol=_TOLERANCE, atol=_SMALLEST)
        and math.isclose(magnitude, rope.magnitude, rel_tol=_TOLERANCE)
    )
