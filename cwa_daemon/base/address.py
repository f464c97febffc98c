"""Where the daemon of a state folder is to be reached, as it has written it down itself."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from cwa_daemon.base.folder_lock import holder
from cwa_daemon.base.security import read_own_file
from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import DaemonUnreachable, NoDaemon
from cwa_engine.base.files import write_whole

SERVER_MODULE = "cwa_daemon.control.server"  # what `python -m` is given to become a daemon
_SERVER_MODULES = {SERVER_MODULE, "cwa_daemon.server"}  # the latter of daemons before this version


@dataclass(frozen=True, slots=True)
class Address:
    """Which daemon runs, and where it is to be reached."""

    pid: int
    started: float | None  # the process, seconds since the epoch; None for a daemon that did not write it down
    machine: str
    socket: Path

    def __str__(self) -> str:
        return f"pid {self.pid} at {self.socket}"


def running_pid(settings: Settings) -> int | None:
    """Process id of the daemon of this state folder, None where none runs.

    A daemon whose lock file was deleted makes it anew within a second; until then its address tells that it runs.
    """
    if pid := holder(settings):
        return pid
    address = _written_address(settings)
    return (
        address.pid
        if address and address.machine == platform.node() and is_there(address) and _is_server(address.pid)
        else None
    )


def write_address(settings: Settings, socket: Path) -> None:
    """Say where this process, which holds the lock, is to be reached, by a path without links. Raises OSError."""
    real = socket.parent.resolve() / socket.name
    address = Address(os.getpid(), _started(os.getpid()), platform.node(), real)
    content = json.dumps({**asdict(address), "socket": str(real)}).encode()
    write_whole(settings.address_file, content, mode=0o600)


def find(settings: Settings) -> Address:
    """The daemon that runs, as it wrote it down itself; no other place is looked at, for a stranger may have made that.

    Raises NoDaemon where none runs, UnsafePlace where another user could have written the address, and DaemonUnreachable where
    there is none of the process that holds the lock: it starts in this moment, or its disk is full.
    """
    with contextlib.suppress(OSError):  # there is none, or it cannot be read: `running_pid` knows
        read_own_file(settings.lock_file)
    pid = running_pid(settings)
    if pid is None:
        raise NoDaemon("no daemon is running", hint="`cwtool daemon start` starts one")
    address = _written_address(settings)
    if address is None or address.pid != pid:
        raise DaemonUnreachable(
            f"the daemon of {settings.home} (pid {pid}) has not written down where it is to be reached",
            hint=f"its log may say why: {settings.daemon_log}; `kill {pid}` ends it",
        )
    return address


def _written_address(settings: Settings) -> Address | None:
    try:
        written = json.loads(read_own_file(settings.address_file))
        return Address(**{**written, "socket": Path(written["socket"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_there(address: Address) -> bool:
    """Whether the process of that number wrote the address, and no other one; to be certain of before it is killed."""
    if address.started is None:
        return _is_server(address.pid)
    began = _started(address.pid)
    return began is not None and abs(began - address.started) <= 1


def _is_server(pid: int) -> bool:
    import psutil

    try:
        return not _SERVER_MODULES.isdisjoint(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _started(pid: int) -> float | None:
    """When a process began, seconds since the epoch; None where it cannot be told."""
    import psutil  # a client needs it only where something is wrong

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
