"""Where the worker of a lane is found by a daemon that did not start it: files in a private folder of the state folder.

cpu.lock   held by the worker for life: taken by the daemon before the worker begins, and handed down to it
cpu.sock   where it listens for another daemon once its own is gone
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from cwa_daemon.base import ofd_lock
from cwa_daemon.base.security import peer_of, private_folder
from cwa_engine.base.errors import CwaError, Refused

PLANS, PULLS = "plans", "pulls"
WITHOUT_DEVICE = {"plan": PLANS, "pull": PULLS}  # kind of job -> its lane; every other lane is that of a device
_END_S = 5.0  # for a worker to be gone after SIGKILL


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one lane's worker."""

    folder: Path
    lane: str

    @property
    def _stem(self) -> str:
        return quote(self.lane, safe="")

    @property
    def lock(self) -> Path:
        return self.folder / f"{self._stem}.lock"

    @property
    def address(self) -> Path:
        return self.folder / f"{self._stem}.sock"

    def take_lock(self) -> IO[bytes]:
        """The lock, for a worker that is about to begin. Raises BlockingIOError where another one has it, OSError."""
        private_folder(self.folder)
        file = os.fdopen(os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
        try:
            ofd_lock.take(file)
        except BaseException:
            file.close()
            raise
        return file

    def is_held(self) -> bool:
        """Whether a worker lives here."""
        try:
            file = self.lock.open("r+b")
        except OSError:
            return False
        with file:
            return ofd_lock.is_taken(file)

    def clear(self) -> None:
        """Remove the files of a worker that has ended. Only the daemon does, which alone takes the lock."""
        for path in (self.address, self.lock):
            path.unlink(missing_ok=True)

    def listen(self) -> socket.socket:
        """The worker's socket. Raises OSError, where the file system takes no sockets for instance."""
        listener = socket.socket(socket.AF_UNIX)
        with self._short_path() as path:
            Path(path).unlink(missing_ok=True)
            listener.bind(path)
        listener.listen(16)
        return listener

    def connect(self) -> socket.socket:
        """A connection to the worker. Raises OSError, and Refused where another user's process listens."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)  # one that is stopped, with daemons enough before this one, would be waited for
        try:
            with self._short_path() as path:
                connection.connect(path)
            check_peer(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def end(self) -> int | None:
        """Kill the worker that is here, and wait until it is gone; gives its process id, None where none is or can be told."""
        import psutil  # only who ends one needs it

        pid = None
        with contextlib.suppress(OSError, CwaError, psutil.Error), self.connect() as connection:
            pid = check_peer(connection)
            process = psutil.Process(pid)
            if self.is_held():  # so the process that was connected with lives, and the number is still its own
                process.kill()
                psutil.wait_procs([process], timeout=_END_S)
        if not self.is_held():
            self.clear()
        return pid

    @contextmanager
    def _short_path(self) -> Iterator[str]:
        """The socket's path, which may be no longer than 107 bytes: by way of the open folder."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{self._stem}.sock"
        finally:
            os.close(folder)


def lanes(folder: Path) -> list[str]:
    """The lanes whose workers have left their files here, whether they live or not."""
    return sorted(unquote(path.stem) for path in folder.glob("*.lock"))


def check_peer(connection: socket.socket) -> int:
    """The process at the other end of a Unix socket. Raises Refused where it is another user's."""
    pid, uid = peer_of(connection)
    if uid != os.getuid():
        raise Refused(f"the process at the other end belongs to another user (uid {uid})")
    return pid


def end_all(folder: Path) -> list[int]:
    """End the workers that no daemon has; gives their process ids. Nothing of a run that is saved is lost."""
    return [pid for lane in lanes(folder) if (pid := Place(folder, lane).end())]
