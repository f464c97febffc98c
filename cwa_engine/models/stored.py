"""What the weights files of a model folder hold, without reading the weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from cwa_engine.models.sources import WEIGHT_SUFFIXES

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file."""

    size_bytes: int
    numel: int | None  # None for a file that does not tell
    dtype: torch.dtype | None  # None where it is not a floating one

    def loaded_bytes(self, dtype: torch.dtype | str) -> int:
        """Memory of the tensor once it is loaded; "auto" keeps the stored dtype."""
        if isinstance(dtype, str) or self.numel is None or self.dtype is None:
            return self.size_bytes
        return self.numel * dtype.itemsize


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name -> what is stored, of all weights files of a folder. A file that is not safetensors counts as one tensor.

    A safetensors file begins with the length of its header, eight bytes little-endian, and the header as JSON.
    """
    found: dict[str, StoredTensor] = {}
    files = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHT_SUFFIXES]
    has_safetensors = any(path.suffix == ".safetensors" for path in files)
    for path in files:
        if path.suffix == ".safetensors":
            found.update(_header(path))
        elif not has_safetensors:
            found[path.name] = StoredTensor(path.stat().st_size, None, None)
    return found


def _header(path: Path) -> dict[str, StoredTensor]:
    """Empty for a file that is broken; whoever reads it says so."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return {}
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return {}
    return {
        name: StoredTensor(
            entry["data_offsets"][1] - entry["data_offsets"][0], math.prod(entry["shape"]), _DTYPES.get(entry["dtype"])
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
