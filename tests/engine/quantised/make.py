"""Make the quantised weights of this folder with the quantisers' own packages:

    pip install torch==2.13.0 transformers bitsandbytes==0.50.2 compressed-tensors==0.20.0 auto-round==0.16.1
    python tests/engine/quantised/make.py

Each file holds the parts of one weight of 32 by 64 as the package stores them, `reference` as the package restores it, and
in its metadata the quantization_config. Tests need none of these packages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
OUT, IN = 32, 64  # bitsandbytes 0.50 restores rows shorter than its blocks of 64 wrongly on a CPU


def weight() -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))


def write(name: str, parts: Mapping[str, Tensor], reference: Tensor, settings: Mapping[str, Any]) -> None:
    tensors = {**parts, "reference": reference.float()}
    content = {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    save_file(content, FOLDER / f"{name}.safetensors", metadata={"settings": json.dumps(settings)})
    print(name, sorted(parts), f"{float((reference - weight()).abs().max()):.3f}")


def bitsandbytes() -> None:
    import bitsandbytes as bnb

    for name, kind, nested in (("nf4", "nf4", False), ("nf4-nested", "nf4", True), ("fp4", "fp4", False)):
        codes, state = bnb.functional.quantize_4bit(weight(), quant_type=kind, compress_statistics=nested)
        parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        write(name, {"weight": codes, **parts}, bnb.functional.dequantize_4bit(codes, state), settings)
    codes, scale, _ = bnb.functional.int8_vectorwise_quant(weight().half())
    restored = bnb.functional.int8_vectorwise_dequant(codes, scale)
    parts = {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    write("int8", parts, restored, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def compressed_tensors() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def case(name: str, form: str, state: dict[str, Tensor], **arguments: Any) -> None:
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress({"weight": weight(), **state}, scheme)
        groups = {"group_0": {"targets": ["Linear"], "weights": arguments}}
        settings = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
        write(f"compressed-{name}", stored, compressor.decompress(dict(stored), scheme)["weight"], settings)

    rows, groups = weight(), weight().view(OUT, -1, 16)
    low, high = groups.amin(-1), groups.amax(-1)
    step = (high - low) / 15
    zero = (torch.round(-low / step) - 8).clamp(-8, 7).to(torch.int8)
    whole = {"num_bits": 8, "type": "int", "symmetric": True}
    by_group = {"strategy": "group", "group_size": 16}
    case("int4", "pack-quantized", {"weight_scale": groups.abs().amax(-1) / 7}, **whole | by_group | {"num_bits": 4})
    case(
        "int4-asymmetric",
        "pack-quantized",
        {"weight_scale": step, "weight_zero_point": zero},
        **whole | by_group | {"num_bits": 4, "symmetric": False},
    )
    by_row = rows.abs().amax(1, keepdim=True)
    case("int8", "int-quantized", {"weight_scale": by_row / 127}, **whole, strategy="channel")
    floats = {"num_bits": 8, "type": "float", "symmetric": True}
    case("fp8", "float-quantized", {"weight_scale": by_row / 448}, **floats, strategy="channel")
    blocks = rows.view(OUT // 16, 16, IN // 16, 16).abs().amax((1, 3)) / 448
    block = {"strategy": "block", "block_structure": [16, 16]}
    case("fp8-block", "float-quantized", {"weight_scale": blocks}, **floats | block)
    total = (448 * 6 / rows.abs().max()).view(1)
    scale = (groups.abs().amax(-1) / 6 * total).to(torch.float8_e4m3fn).float()
    nvfp4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    case("nvfp4", "nvfp4-pack-quantized", {"weight_scale": scale, "weight_global_scale": total}, **nvfp4)


def auto_round() -> None:
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    def quantised(bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scales and zeros of groups of 16, and the weight as they round it."""
        groups, most = weight().view(OUT, -1, 16), 2**bits - 1
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / most).half().float()
        zero = torch.round(-low / scale).clamp(1, most)
        codes = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, most)
        return scale, zero, ((codes - zero[..., None]) * scale[..., None]).view(OUT, IN)

    def layer(values: Tensor) -> nn.Linear:
        linear = nn.Linear(IN, OUT, bias=False)
        linear.weight.data = values.clone()
        return linear

    cases: list[tuple[str, int, str, Callable[..., Any]]] = [
        *((f"gptq{bits}", bits, "gptq", qlinear_torch_zp.QuantLinear) for bits in (2, 3, 4, 8)),
        ("gptq4-v2", 4, "gptq_v2", qlinear_torch.QuantLinear),
    ]
    for name, bits, form, kind in cases:
        scale, zero, restored = quantised(bits)
        packed = kind(bits, 16, IN, OUT, False)
        object.__setattr__(packed, "device", "cpu")
        packed.pack(layer(weight()), scale, zero, None, "cpu")
        parts = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales")}
        settings = {"quant_method": "gptq", "bits": bits, "group_size": 16, "checkpoint_format": form}
        write(name, parts, restored, settings)
    scale, zero, restored = quantised(4)
    awq = WQLinear_GEMM.from_linear(layer(restored), 4, 16, scales=scale.T.contiguous(), zeros=zero.T.contiguous())
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}
    write("awq4", {key: getattr(awq, key) for key in ("qweight", "qzeros", "scales")}, restored, settings)


if __name__ == "__main__":
    bitsandbytes()
    compressed_tensors()
    auto_round()
