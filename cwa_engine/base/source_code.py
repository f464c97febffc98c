"""The engine's own source as a hash: results of other code are other results. torch-free."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

# What only reads finished runs, or lists what there is, changes no result.
_READERS_ONLY = ("claims", "guide", "reports", "studies")


@functools.cache
def code_sha256() -> str:
    """Hash of the source of all that a run computes with."""
    root = Path(__file__).parents[1]
    paths = [path.relative_to(root) for path in sorted(root.rglob("*.py"))]
    computing = [path for path in paths if path.parts[0] not in _READERS_ONLY]
    sources = [path.as_posix().encode() + (root / path).read_bytes() for path in computing]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()
