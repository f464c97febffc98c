"""Targets: names of single weights, rows, columns or attention heads, parsed without a model.

The indices of a target are in the order (expert,) out, in: `model.layers.11.mlp.down_proj.weight[507,:]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.errors import DataError, InvalidInput

STRUCTURES = ("weight", "row", "column", "head")
_TARGET = re.compile(r"(?P<parameter>[\w.\-]+)\s*\[(?P<inside>[\d\s:,]+)\]")
_INDEX = re.compile(r"(\d+)|(\d*):(\d*)")


@dataclass(frozen=True, slots=True)
class Target:
    """Weights that a user named. Whether a model has them is not checked yet."""

    text: str
    parameter: str
    indices: tuple[int | slice, ...]


def parse_target(text: str) -> Target:
    """Parse `NAME[out,in]`, `NAME[out,:]`, `NAME[:,64:128]` or `NAME[17]`. Raises InvalidInput."""
    match = _TARGET.fullmatch(text.strip())
    parts = [part.strip() for part in match["inside"].split(",")] if match else []
    found = [_INDEX.fullmatch(part) for part in parts]
    if not match or not all(found):
        raise InvalidInput(
            f"'{text}' names no weight",
            hint="write it like model.layers.1.mlp.down_proj.weight[2533,7890], indices (out, in); ':' stands for all",
        )
    indices = [int(index[1]) if index[1] else slice(_number(index[2]), _number(index[3])) for index in found if index]
    return Target(text.strip(), match["parameter"], tuple(indices))


def read_targets(path: Path) -> list[str]:
    """The targets of a file: one in each line (# begins a comment), or the column `target` of a run's topk_*.csv."""
    import csv

    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"weights file {path} cannot be read: {reason}",
            hint="give a file with one target in each line, or a target like NAME[out,in]",
        ) from error
    header = next(csv.reader(lines[:1]), [])
    if "target" in header:
        return [row["target"] for row in csv.DictReader(lines)]
    targets = [line.split("#")[0].strip() for line in lines]
    if not any(targets):
        raise DataError(f"weights file {path} names no weight", hint="write one target in each line, like NAME[out,in]")
    return [target for target in targets if target]


def _number(text: str | None) -> int | None:
    return int(text) if text else None
