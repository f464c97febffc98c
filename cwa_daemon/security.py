"""Who may speak: a private folder for the socket, and peers of the same user only."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from cwa_engine.errors import DaemonNotStartable, Refused


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
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o002 or (mode & 0o020 and not _is_private_group(found.st_gid)):
        raise DaemonNotStartable(
            f"others may write to the state folder {folder} (mode {mode:o})",
            hint=f"set CWTOOL_HOME to a folder of its own, like {folder}/cwtool-{os.getuid()}, or `chmod go-w {folder}`",
        )
    return folder


def _is_private_group(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, with nobody else in it."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


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


def check_peer(peer_address: str) -> None:
    """Refuse a message from another user. ipc peers are described as `...:uid:gid:pid` by ZeroMQ (see its test)."""
    uid = peer_address.split(":")[-3] if peer_address.count(":") >= 2 else ""
    if uid != str(os.getuid()):
        raise Refused("this daemon belongs to another user", hint="start your own with `cwtool daemon start`")
