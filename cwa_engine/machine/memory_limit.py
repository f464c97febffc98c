"""A bound on the memory that a piece of work may take, kept by the system: what goes beyond gets MemoryError, at once."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_STATUS = Path("/proc/self/status")
_limit: ContextVar[int | None] = ContextVar("limit", default=None)  # that held before the one that `memory_limit` keeps


@contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process take so much memory beyond what it has, files that are only read not counted.

    Does nothing on systems that do not count this; they are not Linux.
    """
    used = _data_bytes()
    if used is None:
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    _set(used + more_bytes, before, hard)
    active = _limit.set(before)
    try:
        yield
    finally:
        _limit.reset(active)
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def allow_mapping(size_bytes: int) -> None:
    """Let a file of this size be mapped as well: the system counts it, though its pages are the file's own until written to."""
    before = _limit.get()
    if before is not None:
        now, hard = resource.getrlimit(resource.RLIMIT_DATA)
        _set(now + size_bytes, before, hard)


def _set(most: int, before: int, hard: int) -> None:
    known = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))


def _data_bytes() -> int | None:
    """Writable memory of this process's own, as RLIMIT_DATA counts it; None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
