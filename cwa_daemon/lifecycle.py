"""Start and stop of the daemon: one for each state folder, detached from whoever started it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cwa_daemon.security import read_own_file
from cwa_daemon.settings import Settings
from cwa_engine.errors import DaemonNotStartable, DaemonUnreachable, NoDaemon
from cwa_engine.files import user_path, write_whole

ALREADY = "another daemon has this state folder"
_OURS = ("CWTOOL_", "HF_", "XDG_")  # that the daemon, its workers and the libraries they use read
_PATHS = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
LOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length (0: to the end), pid
TERM_S, KILL_S = 5.0, 5.0  # for a daemon that does not answer to end after SIGTERM, and after SIGKILL


@dataclass(frozen=True, slots=True)
class Address:
    """Which daemon runs, and where it is to be reached."""

    pid: int
    started: float | None  # the process, seconds since the epoch; None for a daemon that did not write it down
    machine: str
    socket: Path

    def __str__(self) -> str:
        return f"pid {self.pid} at {self.socket}"


def _lock(kind: int) -> bytes:
    return struct.pack(LOCK, kind, os.SEEK_SET, 0, 0, 0)


@contextmanager
def hold_lock(settings: Settings) -> Iterator[None]:
    """Be the only daemon of a state folder. The system releases the lock however the process ends."""
    settings.lock_file.touch(mode=0o600)
    with settings.lock_file.open("a+") as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK))
        except BlockingIOError:
            raise DaemonNotStartable(ALREADY, hint="`cwtool daemon status` shows it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def running_pid(settings: Settings) -> int | None:
    """Process id of the daemon that holds the lock, None where nobody does.

    Asks without taking the lock: a question must not be what keeps a daemon from starting.
    """
    try:
        file = settings.lock_file.open("r")
    except OSError:  # no state folder, or none of ours; a start would say which
        return None
    with file:
        kind, *_ = struct.unpack(LOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK)))
        return None if kind == fcntl.F_UNLCK else int(file.read() or 0) or None


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
    try:
        read_own_file(settings.lock_file)
    except OSError:  # there is none, or it cannot be read: `running_pid` says the same
        raise NoDaemon("no daemon is running", hint="`cwtool daemon start` starts one") from None
    pid = running_pid(settings)
    if pid is None:
        raise NoDaemon("no daemon is running", hint="`cwtool daemon start` starts one")
    try:
        written = json.loads(read_own_file(settings.address_file))
        address = Address(**{**written, "socket": Path(written["socket"])})
    except (OSError, ValueError, TypeError, KeyError):
        address = None
    if address is None or address.pid != pid:
        raise DaemonUnreachable(
            f"the daemon of {settings.home} (pid {pid}) has not written down where it is to be reached",
            hint=f"its log may say why: {settings.daemon_log}; `kill {pid}` ends it",
        )
    return address


def end(settings: Settings) -> int:
    """End a daemon that does not answer, by signals; gives the process id. Raises DaemonUnreachable where that fails."""
    address = find(settings)
    if not _is_there(address):
        raise DaemonUnreachable(
            f"the daemon ({address}) does not answer, and is no process that this one can tell",
            hint=f"it runs on {address.machine}, perhaps in a container: end it there",
        )
    for signum, patience_s in ((signal.SIGTERM, TERM_S), (signal.SIGKILL, KILL_S)):
        os.kill(address.pid, signum)
        if wait_until_gone(address.pid, patience_s):
            return address.pid
    raise DaemonUnreachable(f"the daemon ({address}) does not end", hint=f"kill -9 {address.pid}")


def start(settings: Settings) -> bool:
    """Start a daemon and wait until it answers. False where one runs already. Raises DaemonNotStartable with its reason."""
    if running_pid(settings):
        return False
    reader, writer = os.pipe()
    with os.fdopen(reader) as report:
        process = subprocess.Popen(
            [sys.executable, "-m", "cwa_daemon.server", str(writer)],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(settings),
            cwd="/",
        )
        os.close(writer)
        said = report.read()  # ends when the daemon says "ready", or dies
    if said == "ready":
        return True
    message, _, hint = said.partition("\n")
    if message == ALREADY:  # somebody else started one in the same moment
        return False
    if not said:
        assert process.stderr
        message = (process.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    raise DaemonNotStartable(f"the daemon cannot start: {message}", hint=hint or f"see {settings.daemon_log}")


def _environment(settings: Settings) -> dict[str, str]:
    """That of the daemon. Its working folder is another, so paths are absolute; an empty variable of ours is not set."""
    environment = {name: value for name, value in os.environ.items() if value or not name.startswith(_OURS)}
    paths = {name: str(user_path(environment[name], name)) for name in _PATHS if name in environment}
    listen = {"CWTOOL_LISTEN": settings.listen} if settings.listen else {}
    return {**environment, **paths, "CWTOOL_HOME": str(settings.home), **listen}


def _is_there(address: Address) -> bool:
    """Whether the process of that number is the daemon, and no other process here; to be certain of before it is killed."""
    import psutil

    try:
        if address.started is None:
            return "cwa_daemon.server" in psutil.Process(address.pid).cmdline()
        began = _started(address.pid)
        return began is not None and abs(began - address.started) <= 1
    except psutil.Error:
        return False


def _started(pid: int) -> float | None:
    """When a process began, seconds since the epoch; None where it cannot be told."""
    import psutil  # a client needs it only where something is wrong

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def wait_until_gone(pid: int, timeout_s: float | None) -> bool:
    """Whether the process ended within the time."""
    import psutil  # only who stops a daemon waits for it

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    _, alive = psutil.wait_procs([process], timeout=timeout_s)
    return not alive
