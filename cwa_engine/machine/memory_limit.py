"""A bound on the memory that a piece of work may take, kept by the system: what goes beyond gets MemoryError, at once."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")


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
    most = used + more_bytes
    known = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def _data_bytes() -> int | None:
    """Writable memory of this process's own, as RLIMIT_DATA counts it; None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)
