"""Rotary positions: from what a GGUF file says of them to transformers' `rope_parameters`, and a check that both agree.

A head's feature pair i of n/2 is turned by `position * frequency[i]`, and the result multiplied by a magnitude. With base b,
linear factor s, factors f of the file's own, and YaRN's ramp r between the two (Peng et al. 2023, section 3.2):

    frequency[i] = b^(-2i/n) / f[i] * (r[i]/s + 1 - r[i])       r = 1 without YaRN

Keys and defaults are those that src/llama-model.cpp and src/llama-context.cpp of llama.cpp read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cwa_engine.errors import ModelBroken
from cwa_engine.models.gguf.keys import Keys

_TOLERANCE = 1e-5  # relative, between two ways of computing a frequency in float32
_LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True)
class Rope:
    """`parameters` go into transformers' config; `frequencies` [n/2] and `magnitude` are what they have to come to."""

    parameters: dict[str, Any]
    frequencies: Tensor
    magnitude: float = 1.0


def plain_rope(base: float, head_size: int) -> Rope:
    """Whole heads, nothing scaled."""
    return Rope({"rope_type": "default", "rope_theta": base}, _base_frequencies(base, head_size))


def rope(keys: Keys, head_size: int, truncate: bool = True) -> Rope:
    """What the file says. `truncate` makes the ends of YaRN's ramp whole features.

    Raises ModelBroken for what transformers cannot do.
    """
    base = keys.get("rope.freq_base", 10000.0)
    turned = keys.get("rope.dimension_count", head_size)
    kind = keys.get("rope.scaling.type", "linear")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0)) or 1.0
    original = keys.get("rope.scaling.original_context_length", keys.get("context_length"))
    magnitude = keys.get("rope.scaling.attn_factor")
    keys.ignore("rope.scaling.finetuned")
    yarn = {name: keys.get(f"rope.scaling.yarn_{name}") for name in _YARN}
    short, long = keys.loaded("rope_factors_short.weight"), keys.loaded("rope_factors_long.weight")
    factors = keys.loaded("rope_freqs.weight")
    has_long = short is not None and long is not None
    if turned % 2 or turned > head_size:
        raise keys.refused("rope.dimension_count", turned, f"a head has {head_size} features, which turn in pairs")
    if kind != "yarn" and any(value is not None for value in yarn.values()):
        raise keys.refused("rope.scaling.type", kind, "but it also has numbers for yarn")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if turned != head_size:
        parameters["partial_rotary_factor"] = _part(turned, head_size)
    frequencies = _base_frequencies(base, turned)
    match kind:
        case "longrope" | "linear" | "none" if has_long and factors is None:  # older files of Phi-3 do not say longrope
            return _longrope(parameters, frequencies, short, long, magnitude, original, keys["context_length"])
        case "yarn" if factors is None and short is None and long is None:
            return _yarn(keys, parameters, frequencies, factor, original, magnitude or 1.0, yarn, truncate)
        case "linear" | "none" if short is None and long is None:
            divisor = torch.full_like(frequencies, factor if kind == "linear" else 1.0)
            if factors is not None:
                divisor = divisor * _of_length(keys, factors, len(frequencies))
            return _divided(parameters, frequencies, divisor, magnitude or 1.0, original)
    raise keys.refused("rope.scaling.type", kind, "cwtool does not know this kind of scaling, or lacks tensors for it")


_YARN = ("ext_factor", "attn_factor", "beta_fast", "beta_slow", "log_multiplier")


def _part(turned: int, head_size: int) -> float:
    """The factor for which int(head_size * factor) is `turned`."""
    part = turned / head_size
    return part if int(head_size * part) == turned else math.nextafter(part, 2)


def _base_frequencies(base: float, turned: int) -> Tensor:
    return 1.0 / (base ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned))


def _of_length(keys: Keys, factors: Tensor, length: int) -> Tensor:
    if factors.shape != (length,):
        raise ModelBroken(
            f"rope_freqs.weight of {keys.file.path.name} has {factors.numel()} factors for {length} frequencies",
            hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
        )
    return factors


def _divided(parameters: dict[str, Any], frequencies: Tensor, divisor: Tensor, magnitude: float, original: int) -> Rope:
    """Frequencies divided by numbers of the file's own, as one of transformers' kinds where one fits exactly."""
    found = Rope(parameters, frequencies / divisor, magnitude)
    if magnitude == 1.0:
        if bool((divisor == 1).all()):
            return found
        if bool((divisor == divisor[0]).all()):
            return Rope({**parameters, "rope_type": "linear", "factor": float(divisor[0])}, found.frequencies)
        if llama3 := _llama3(frequencies, divisor, original):
            return Rope({**parameters, **llama3}, found.frequencies)
    every = divisor.tolist()
    exact = {
        "rope_type": "longrope",
        "short_factor": every,
        "long_factor": every,
        "factor": 1.0,
        "attention_factor": magnitude,
        "original_max_position_embeddings": original,
    }
    return Rope({**parameters, **exact}, found.frequencies, magnitude)


def _llama3(frequencies: Tensor, divisor: Tensor, original: int) -> dict[str, Any] | None:
    """The parameters of Llama 3.1 that give this divisor to the last bit but one; None where there are none.

    The converter writes the divisors alone. Waves longer than `original` are divided by the factor, those shorter than a
    quarter of it are not, and between the two the divisor changes smoothly.
    """
    factor, waves = float(divisor.max()), 2 * math.pi / frequencies
    low, high = _LLAMA3_BANDS.values()
    for length in (8192, original, *(2**power for power in range(4, 21))):
        smooth = ((length / waves - low) / (high - low)).clamp(0, 1)
        if torch.allclose(1 / ((1 - smooth) / factor + smooth), divisor, rtol=3e-7, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                **_LLAMA3_BANDS,
                "original_max_position_embeddings": length,
            }
    return None


def _yarn(
    keys: Keys,
    parameters: dict[str, Any],
    frequencies: Tensor,
    factor: float,
    original: int,
    scaled: float,
    given: dict[str, Any],
    truncate: bool,
) -> Rope:
    keys.expect("rope.scaling.yarn_ext_factor", 1.0)
    fast, slow = given["beta_fast"] or 32.0, given["beta_slow"] or 1.0

    def magnitude_of(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    if given["attn_factor"] is not None:
        magnitude = given["attn_factor"] * scaled
    else:
        multiplier = given["log_multiplier"] or 0.0
        magnitude = magnitude_of(1.0) / magnitude_of(multiplier) * scaled

    turned = 2 * len(frequencies)

    def feature_that_turns(times: float) -> float:
        return turned * math.log(original / (times * 2 * math.pi)) / (2 * math.log(parameters["rope_theta"]))

    first, last = feature_that_turns(fast), feature_that_turns(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, turned - 1)
    ramp = ((torch.arange(len(frequencies)) - first) / max(last - first, 0.001)).clamp(0, 1)
    yarn = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "attention_factor": magnitude,
        "truncate": truncate,
    }
    return Rope({**parameters, **yarn}, frequencies * (ramp / factor + 1 - ramp), magnitude)


def _longrope(
    parameters: dict[str, Any],
    frequencies: Tensor,
    short: Any,
    long: Any,
    magnitude: float | None,
    original: int,
    longest: int,
) -> Rope:
    """Other factors for texts beyond the length of pretraining; without a magnitude that of Ding et al. 2024."""
    if magnitude is None:
        scale = longest / original
        magnitude = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    longrope = {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "attention_factor": magnitude,
        "original_max_position_embeddings": original,
    }
    return Rope({**parameters, **longrope}, frequencies / short, magnitude)


def check_rope(model: PreTrainedModel, ropes: tuple[Rope, ...], name: str) -> None:
    """Compare what transformers computes with what the file says. `model` may be without memory.

    Raises ModelBroken where the architecture in transformers does not do what its config asks for.
    """
    seen = []
    for module in model.modules():
        if not any(buffer.endswith("inv_freq") for buffer, _ in module.named_buffers(recurse=False)):
            continue
        computed: Any = type(module)(config=module.config)  # on the CPU, with numbers
        for buffer, value in computed.named_buffers(recurse=False):
            if buffer.endswith("inv_freq") and "original" not in buffer:
                layers = buffer.removesuffix("inv_freq")
                seen.append((value, getattr(computed, f"{layers}attention_scaling", 1.0)))
    for frequencies, magnitude in seen:
        if not any(_same(rope, frequencies, magnitude) for rope in ropes):
            raise ModelBroken(
                f"{type(model).__name__} of transformers turns positions otherwise than {name} says",
                hint="give the model that the file was made from, as a folder or Hub id",
            )
    if ropes and not seen:
        raise ModelBroken(f"{type(model).__name__} of transformers has no rotary positions, {name} has", hint="")


def _same(rope: Rope, frequencies: Tensor, magnitude: float) -> bool:
    return (
        frequencies.shape == rope.frequencies.shape
        and torch.allclose(frequencies, rope.frequencies, rtol=_TOLERANCE, atol=0)
        and math.isclose(magnitude, rope.magnitude, rel_tol=_TOLERANCE)
    )
