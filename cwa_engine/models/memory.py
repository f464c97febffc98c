"""Memory: what gradient statistics need, and what a device has left."""

from __future__ import annotations

import psutil
import torch

from cwa_engine.models.loading import LoadedModel
from cwa_engine.sensitivity.metrics import Needs

SHARE = 0.8  # of what is free may be filled with statistics; activations and the other processes need the rest


def statistics_bytes(loaded: LoadedModel, needs: Needs) -> int:
    """Bytes of g, F and diag H of all weights in view, in float32."""
    kept = sum(need in needs for need in (Needs.GRADIENT, Needs.FISHER, Needs.HESSIAN))
    return 4 * loaded.anatomy.numel * kept


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def fits_resident(loaded: LoadedModel, needs: Needs) -> bool:
    """Whether the statistics of all weights can be kept at once."""
    return statistics_bytes(loaded, needs) <= SHARE * free_bytes(loaded.device)
