"""The lock of a state folder: one daemon holds it for life, so there is one daemon for each folder.

Two locks, for each alone can be got round. The one on `daemon.lock` tells everybody who holds it, but the file may be deleted
or replaced; the one on the folder itself cannot be, but some file systems refuse it and nobody can ask who has it. The system
releases both however the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cwa_daemon.base import ofd_lock
from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import DaemonNotStartable

log = logging.getLogger(__name__)

ALREADY = "another daemon has this state folder"


class FolderLock:
    """The lock, held until `release`. Raises DaemonNotStartable where another process has it."""

    def __init__(self, home: Path, file: Path) -> None:
        self._home, self._file = home, file
        self._folder_handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        self._file_handle = -1
        try:
            _lock_folder(self._folder_handle)
            self._take_file()
        except BaseException:
            self.release()
            raise

    def look_after(self) -> None:
        """Once a second: make the file anew where it was deleted or replaced, so that `holder` still tells.

        Raises DaemonNotStartable where the folder is another one by now, or the new file is another daemon's.
        """
        if not _is_same(self._home, self._folder_handle):
            raise DaemonNotStartable(
                f"the state folder {self._home} was moved or replaced while this daemon ran",
                hint="`cwtool daemon stop`; put the folder back where it was, then start again",
            )
        if not _is_same(self._file, self._file_handle):
            log.warning("%s was deleted or replaced: it is made anew", self._file)
            self._take_file()

    def release(self) -> None:
        for handle in (self._file_handle, self._folder_handle):
            if handle >= 0:
                os.close(handle)
        self._file_handle = self._folder_handle = -1

    def _take_file(self) -> None:
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            ofd_lock.take(handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        except OSError as error:
            os.close(handle)
            raise (_already() if isinstance(error, BlockingIOError) else error) from None
        if self._file_handle >= 0:
            os.close(self._file_handle)
        self._file_handle = handle


@contextmanager
def hold_lock(settings: Settings) -> Iterator[FolderLock]:
    """Be the only daemon of a state folder. Raises DaemonNotStartable where another one runs, or the folder cannot be used."""
    try:
        lock = FolderLock(settings.home, settings.lock_file)
    except OSError as error:
        raise DaemonNotStartable(
            f"the lock {settings.lock_file} cannot be taken: {error.strerror}",
            hint="set CWTOOL_HOME to a folder you may write; `cwtool doctor` looks at it",
        ) from error
    try:
        yield lock
    finally:
        lock.release()


def holder(settings: Settings) -> int | None:
    """Process id of whoever holds the lock of `daemon.lock`, None where nobody does.

    Asks without taking the lock: a question must not be what keeps a daemon from starting.
    """
    try:
        file = os.fdopen(os.open(settings.lock_file, os.O_RDONLY | os.O_NONBLOCK), "r")  # a pipe is not waited for
    except OSError:  # no state folder, or none of ours; a start would say which
        return None
    with file:
        written = file.read(20) if ofd_lock.is_taken(file) else ""
        return int(written) if written.isdigit() else None


def _lock_folder(handle: int) -> None:
    """Lock the folder where the file system can do that; where not, the lock on the file is what there is."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise _already() from None


def _is_same(path: Path, handle: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False


def _already() -> DaemonNotStartable:
    return DaemonNotStartable(ALREADY, hint="`cwtool daemon status` shows it")
