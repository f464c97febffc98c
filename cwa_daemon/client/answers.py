"""What clients give back that is no view of the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.plain import JsonMap


@dataclass(frozen=True)
class Result:
    """A finished run: where its files are, and its summary."""

    folder: Path
    summary: JsonMap


@dataclass(frozen=True)
class Stopped:
    """What stopping the daemon meant: the runs that were interrupted, and how many wait for the next start."""

    pid: int
    interrupted: list[str]
    queued: int
    by_force: bool = False  # it could not be asked: what it did is not known
