"""A limit, enforced by the system, on the memory that a piece of work may take. Beyond it there is a MemoryError at once."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_STATUS = Path("/proc/self/status")
_limit: ContextVar[int | None] = ContextVar("limit", default=None)  # the soft limit before `memory_limit`


@contextmanager
def memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process take at most `more_bytes` of memory beyond what it has. Files that are only read do not count.

    Does nothing on systems other than Linux, which do not count this memory.
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
    """Raise the limit by the size of a file to be mapped: the system counts it, though its pages are the file's own."""
    before = _limit.get()
    if before is not None:
        now, hard = resource.getrlimit(resource.RLIMIT_DATA)
        _set(now + size_bytes, before, hard)


def _set(most: int, before: int, hard: int) -> None:
    known = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))


def _data_bytes() -> int | None:
    """Private writable memory of this process, as RLIMIT_DATA counts it; None if the system does not report it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
