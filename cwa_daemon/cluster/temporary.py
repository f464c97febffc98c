"""Temporary folders of a process on the disk of its node, which it removes, or whoever comes after it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from cwa_engine.base.files import process_lives


def own_prefix(kind: str) -> str:
    """How the names of such folders begin; the process id follows."""
    return f"cwtool-{kind}-"


def own_temporary(kind: str, longest: int | None = None) -> Path:
    """A private folder `cwtool-KIND-PID-xxxx`; those of processes of this user that have ended are removed.

    It is below TMPDIR, or below /tmp where its path would have more than `longest` characters.
    """
    prefix = own_prefix(kind)
    root = Path(tempfile.gettempdir())
    if longest and len(f"{root}/{prefix}{os.getpid()}-xxxxxxxx") > longest:
        root = Path("/tmp")
    for other in root.glob(f"{prefix}*"):
        pid = other.name.removeprefix(prefix).partition("-")[0]
        with contextlib.suppress(OSError):  # somebody else removes it at the same time
            if pid.isdigit() and other.lstat().st_uid == os.getuid() and not process_lives(int(pid)):
                shutil.rmtree(other, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))
