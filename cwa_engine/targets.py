"""Targets: names of single weights, rows, columns or attention heads, parsed without a model.

The indices of a target are in the order (expert,) out, in: `model.layers.11.mlp.down_proj.weight[507,:]`. Those of other
tools' files are of the tensor as it is stored, and say so: `NAME[stored 507,12]`, `NAME[stored 507,12 of 4096,11008]` with
the shape that the file gives the tensor, `NAME[flat 5636219]` for the place in the flattened tensor.

The name may be the end of a parameter's name, also without `.weight`, and `*` stands for any part of it, as long as one
parameter alone is meant: `2.mlp.down_proj[507,:]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cwa_engine.base.errors import InvalidInput

STRUCTURES = ("weight", "row", "column", "head")
Order = Literal["features", "stored", "flat"]
_TARGET = re.compile(
    r"(?P<parameter>[\w.\-*]+)\s*\[\s*((?P<order>stored|flat)\s+)?(?P<inside>[\d\s:,]+?)(\s+of\s+(?P<shape>[\d\s,]+))?\]"
)
_INDEX = re.compile(r"(\d+)|(\d*):(\d*)")


@dataclass(frozen=True, slots=True)
class Target:
    """Weights that a user named. Whether a model has them is not checked yet."""

    text: str
    parameter: str
    indices: tuple[int | slice, ...]
    order: Order = "features"  # "stored": of the tensor's own axes; "flat": of the flattened tensor
    shape: tuple[int, ...] | None = None  # that the tensor must have


def parse_target(text: str) -> Target:
    """Parse `NAME[out,in]`, `NAME[out,:]`, `NAME[:,64:128]`, `NAME[17]` or `NAME[stored 3,5]`. Raises InvalidInput."""
    match = _TARGET.fullmatch(text.strip())
    parts = [part.strip() for part in match["inside"].split(",")] if match else []
    found = [_INDEX.fullmatch(part) for part in parts]
    if not match or not all(found):
        raise InvalidInput(
            f"'{text}' names no weight",
            hint="write it like model.layers.1.mlp.down_proj.weight[2533,7890], indices (out, in); ':' stands for all",
        )
    indices = [int(index[1]) if index[1] else slice(_number(index[2]), _number(index[3])) for index in found if index]
    shape = tuple(int(size) for size in match["shape"].split(",") if size.strip()) if match["shape"] else None
    order: Order = match["order"] or "features"  # type: ignore[assignment]
    return Target(text.strip(), match["parameter"], tuple(indices), order, shape)


def _number(text: str | None) -> int | None:
    return int(text) if text else None
