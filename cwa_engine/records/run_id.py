"""Names of runs. torch-free."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that reads as another letter


def new_run_id(model: str) -> str:
    """`20261123-143205-smollm2-135m-k7q2`: when, what, and four letters that make it one of a kind."""
    slug = re.sub(r"[^a-z0-9.]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-.")[:40] or "model"
    tail = "".join(secrets.choice(_ALPHABET) for _ in range(4))
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{tail}"


def short_id(run_id: str) -> str:
    """`k7q2`: the end of a run id, by which every command finds it."""
    return run_id.rpartition("-")[2]
