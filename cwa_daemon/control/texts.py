"""Files of texts that clients handed over: `texts/<sha256>/<name>` in the state folder, each whole or not there.

A file stays as long as a job or run in the database uses it. One that none uses goes an hour after it was last asked for:
at the daemon's start, when jobs are pruned, and when another file comes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cwa_daemon.base.security import private_folder
from cwa_daemon.protocol import KeepTexts
from cwa_engine.base.errors import InvalidInput, StateDamaged, StateNotWritten
from cwa_engine.base.files import sync_folder
from cwa_engine.hub.sources import file_sha256

log = logging.getLogger(__name__)

UNUSED_S = 3600.0  # between a file's arrival and the job that uses it, at the most


class KeptTexts:
    """The folder. `used` gives the files that jobs use."""

    def __init__(self, folder: Path, most_bytes: int, used: Callable[[], Iterable[str]]) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._used = used
        self._one_at_a_time = asyncio.Lock()

    def holds(self, path: Path) -> bool:
        """Whether a file is one of those that clients handed over."""
        return path.is_absolute() and ".." not in path.parts and path.is_relative_to(self._folder)

    async def keep(self, piece: KeepTexts) -> tuple[int, Path | None]:
        """Take a piece of a file: how many bytes of it are here now and, once all are, its path.

        A piece is taken only where it is the next one. Whoever is told how much is here can go on from there, also after a
        break, and two clients with the same file help each other.

        Raises InvalidInput for a file that is too large or not the one it was said to be, StateNotWritten on a full disk.
        """
        if piece.size_bytes > self._most_bytes:
            raise InvalidInput(
                f"{piece.name} has {piece.size_bytes / 1e9:.2f} GB, the daemon takes {self._most_bytes / 1e9:.2f}",
                hint="set CWTOOL_TEXTS_GB where the daemon runs, or use --eval-limit",
            )
        whole = self._folder / piece.sha256 / piece.name
        part = self._folder / f".{piece.sha256}.part"
        async with self._one_at_a_time:
            try:
                if whole.is_file():
                    whole.touch()
                    return piece.size_bytes, whole
                here = self._append(part, piece)
                if here < piece.size_bytes:
                    return here, None
                await asyncio.to_thread(_finish, part, whole)  # which reads the file
            except OSError as error:
                part.unlink(missing_ok=True)
                raise StateNotWritten(
                    f"{piece.name} cannot be kept: {error.strerror}", hint="make room on the disk of the state folder"
                ) from error
        await self.sweep()
        return piece.size_bytes, whole

    async def sweep(self) -> None:
        """Remove the files that no job uses, and what is left of some that never came whole."""
        async with self._one_at_a_time:
            try:
                self._sweep()
            except (OSError, StateDamaged) as error:
                log.warning("texts that no job uses cannot be removed: %s", error)

    def _sweep(self) -> None:
        used = {Path(file).parts[-2:] for file in self._used()}  # the state folder may have been moved
        before = time.time() - UNUSED_S
        for folder in self._folder.iterdir() if self._folder.is_dir() else []:
            files = list(folder.iterdir()) if folder.is_dir() else [folder]
            unused = [file for file in files if file.parts[-2:] not in used and file.stat().st_mtime < before]
            for file in unused:
                file.unlink()
            if unused == files and folder.is_dir():
                folder.rmdir()

    def _append(self, part: Path, piece: KeepTexts) -> int:
        """How much is here after it."""
        private_folder(self._folder)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            here = file.seek(0, os.SEEK_END)
            return here + (file.write(piece.data) if here == piece.offset else 0)


def _finish(part: Path, whole: Path) -> None:
    """Give a file its name, if it is what it was said to be; else remove it and raise InvalidInput."""
    if file_sha256(part) != whole.parent.name:
        part.unlink()
        raise InvalidInput(f"{whole.name} did not arrive as it was sent", hint="try again")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    whole.parent.mkdir(mode=0o700, exist_ok=True)
    part.replace(whole)
    sync_folder(whole.parent)
