"""Files that are there whole or not at all, and folders that can be written. torch-free."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

from cwa_engine.errors import OutputError


def check_output(folder: Path) -> None:
    """Create an output folder and prove that it can be written. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".cwtool-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written: {error.strerror}", hint="give --output a folder you may write"
        ) from error


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file under a temporary name, flush it to disk, rename it. Raises OSError; then nothing of it is left.

    `mode` is as for `os.open`: the umask takes from it.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write_synced(scratch, content, mode)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a new file and flush it to disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename in it outlives a power cut."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
