"""What is to be trusted: the peer of a connection, and folders, files and sockets that no other user could have made.

"Others" are all users but this one, root, and the group that many systems make for each user with nobody else in it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

from cwa_engine.base.errors import DaemonNotStartable, UnsafePlace
from cwa_engine.base.places import others_may_write

_PEER = "3i"  # struct ucred of Linux: pid, uid, gid


def private_folder(folder: Path) -> Path:
    """Create `folder` and its missing parents with mode 0700, and give it that mode where it has another.

    Raises DaemonNotStartable for a folder that is a link, belongs to another user, or cannot be made.
    """
    _own_folder(folder, private=True)
    return folder


def state_folder(folder: Path) -> Path:
    """The same, but a folder that was there keeps its mode: others may look into it, as what is secret in it has its own.

    Raises DaemonNotStartable also where others may write: they could put a database of theirs in place of ours.
    """
    found = _own_folder(folder)
    if others_may_write(found):
        raise DaemonNotStartable(
            f"others may write to the state folder {folder} (mode {stat.S_IMODE(found.st_mode):o})",
            hint=f"set CWTOOL_HOME to a folder of its own, like {folder}/cwtool-{os.getuid()}, or `chmod go-w {folder}`",
        )
    return folder


def read_own_file(path: Path, private: bool = False) -> bytes:
    """A file of this user's state folder, opened so that nobody can swap it meanwhile.

    Raises OSError where there is none, and UnsafePlace where another user could have written it; `private`: or read it.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check_owned(path.parent, os.fstat(folder))
            file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno == errno.ELOOP or path.parent.is_symlink():
            raise UnsafePlace(f"{path} is not the file that cwtool wrote: a link leads to it", hint=_PLACE) from error
        raise
    with os.fdopen(file, "rb") as opened:
        found = os.fstat(opened.fileno())
        _check_owned(path, found)
        if not stat.S_ISREG(found.st_mode):
            raise UnsafePlace(f"{path} is no regular file", hint="remove it")
        if private and found.st_mode & 0o077:
            raise UnsafePlace(
                f"others may read {path} (mode {stat.S_IMODE(found.st_mode):o})", hint=f"`chmod 600 {path}`"
            )
        return opened.read()


def check_way(path: Path) -> None:
    """Prove that nobody else can put a socket of theirs at `path`, an absolute path without links.

    Every folder on the way belongs to this user or to root, and others may not write to it, or it is sticky, as /tmp is; the
    last two belong to this user alone. Raises UnsafePlace, naming the folder, its owner and its mode, and OSError.
    """
    root = Path("/").stat().st_uid  # another number than 0 in a user namespace
    folders = list(reversed(path.parents))
    for folder in folders:
        found = folder.lstat()
        mode, owners = found.st_mode, {os.getuid()} if folder in folders[-2:] else {os.getuid(), root}
        if not stat.S_ISDIR(mode):
            raise UnsafePlace(f"{folder}, on the way to the daemon's socket, is no folder of its own", hint=_PLACE)
        if found.st_uid not in owners:
            raise UnsafePlace(
                f"{folder}, on the way to the daemon's socket, belongs to another user (uid {found.st_uid})",
                hint=_PLACE,
            )
        if others_may_write(found) and not mode & stat.S_ISVTX:
            raise UnsafePlace(
                f"others may write to {folder} (mode {stat.S_IMODE(mode):o}), on the way to the daemon's socket",
                hint=_PLACE,
            )


def check_socket(path: Path) -> None:
    """Prove that a socket, and the way to it, are this user's. Raises UnsafePlace, and OSError where there is none."""
    check_way(path)
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        raise UnsafePlace(f"{path} is no socket", hint=_PLACE)
    if found.st_uid != os.getuid():
        raise UnsafePlace(f"the socket {path} belongs to another user (uid {found.st_uid})", hint=_PLACE)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(process id, user id) of the process at the other end of a Unix socket."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_PEER))
    pid, uid, _ = struct.unpack(_PEER, found)
    return pid, uid


def _check_owned(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid():
        raise UnsafePlace(f"{path} belongs to another user (uid {found.st_uid})", hint=_PLACE)
    if others_may_write(found):
        raise UnsafePlace(f"others may write to {path} (mode {stat.S_IMODE(found.st_mode):o})", hint=_PLACE)


_PLACE = (
    "nothing was sent; set CWTOOL_HOME and XDG_RUNTIME_DIR to folders that only you may write, then start the daemon"
)


def _own_folder(folder: Path, private: bool = False) -> os.stat_result:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
            raise DaemonNotStartable(f"{folder} is not a folder of its own", hint="remove it and try again")
        if found.st_uid != os.getuid():
            raise DaemonNotStartable(
                f"{folder} belongs to another user (uid {found.st_uid})",
                hint="set XDG_RUNTIME_DIR or CWTOOL_HOME to a folder of your own",
            )
        if private and stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise DaemonNotStartable(
            f"{folder} cannot be used: {error.strerror}",
            hint="set CWTOOL_HOME to a folder you may write; XDG_RUNTIME_DIR moves the socket",
        ) from error
    return found
