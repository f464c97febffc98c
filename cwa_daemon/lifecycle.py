"""Start and stop of the daemon: one for each state folder, detached from whoever started it."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cwa_daemon.settings import Settings
from cwa_engine.errors import DaemonNotStartable
from cwa_engine.files import user_path

ALREADY = "another daemon has this state folder"
_OURS = ("CWTOOL_", "HF_", "XDG_")  # that the daemon, its workers and the libraries they use read
_PATHS = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
LOCK = "hhqqi4x"  # struct flock of Linux: type, whence, start, length (0: to the end), pid


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


def wait_until_gone(pid: int, timeout_s: float | None) -> bool:
    """Whether the process ended within the time."""
    import psutil  # only who stops a daemon waits for it

    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return True
    _, alive = psutil.wait_procs([process], timeout=timeout_s)
    return not alive
