"""Who may speak: a private folder for the socket, and peers of the same user only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cwa_engine.errors import DaemonNotStartable, Refused


def private_folder(folder: Path) -> Path:
    """Create `folder` and its missing parents with mode 0700, and check owner and mode of the folder itself.

    Raises DaemonNotStartable for a folder that is a link, belongs to another user, or cannot be made.
    """
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
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise DaemonNotStartable(
            f"{folder} cannot be used: {error.strerror}",
            hint="set CWTOOL_HOME to a folder you may write; XDG_RUNTIME_DIR moves the socket",
        ) from error
    return folder


def check_peer(peer_address: str) -> None:
    """Refuse a message from another user. ipc peers are described as `...:uid:gid:pid` by ZeroMQ (see its test)."""
    uid = peer_address.split(":")[-3] if peer_address.count(":") >= 2 else ""
    if uid != str(os.getuid()):
        raise Refused("this daemon belongs to another user", hint="start your own with `cwtool daemon start`")
