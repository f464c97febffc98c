"""float64 on every device: where a device has none, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def doubled(tensor: Tensor, copy: bool = False) -> Tensor:
    """The values in float64, on the tensor's device, or on the CPU where that device has no float64, as Apple's have none.

    A tensor that is in float64 already is given itself, or a copy with `copy`.
    """
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64, copy=copy)
