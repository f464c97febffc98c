"""Start and stop of the daemon: one for each state folder, detached from the program that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from cwa_daemon.base.address import SERVER_MODULE, Address, find, is_there, running_pid
from cwa_daemon.base.folder_lock import ALREADY
from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import CwaError, DaemonNotStartable, DaemonUnreachable
from cwa_engine.base.files import user_path

_OURS = ("CWTOOL_", "HF_", "XDG_")  # that the daemon, its workers and the libraries they use read
_PATHS = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
KILL_S = 5.0  # for a process to be gone after SIGKILL
STOPPED = "stopped by a signal (SIGSTOP)"
PROCESSES_HINT = "end some processes; `ulimit -u` shows how many you may have"


def condition(settings: Settings) -> str:
    """Why a daemon may not answer, in words that follow "it is"; empty where that cannot be told from here."""
    import psutil  # a client needs it only where something is wrong

    try:
        address = find(settings)
        if not is_there(address):
            return ""
        process = psutil.Process(address.pid)
        state = process.status()
        if state in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            return STOPPED
        if state == psutil.STATUS_DISK_SLEEP:
            return "waiting for a disk"
        return "busy" if process.cpu_percent(interval=0.1) > 50 else "waiting for something"
    except (psutil.Error, CwaError):
        return ""


def kill(settings: Settings) -> int:
    """End a daemon by SIGKILL, as one that does not answer may need; gives its process id.

    Raises DaemonUnreachable where it is not to be seen from here or does not end.
    """
    address = find(settings)
    if not is_there(address):
        raise DaemonUnreachable(
            f"the daemon ({address}) does not answer, and is no process that this one can tell",
            hint=f"it runs on {address.machine}, perhaps in a container: end it there",
        )
    os.kill(address.pid, signal.SIGKILL)
    if not wait_until_gone(address.pid, KILL_S):
        raise DaemonUnreachable(f"the daemon ({address}) does not end, though it was killed", hint=_wait_hint(address))
    return address.pid


def terminate(settings: Settings, timeout_s: float) -> int:
    """Ask a daemon that speaks another protocol to end, by SIGTERM; gives its process id.

    Raises DaemonUnreachable where it has not ended in time.
    """
    address = find(settings)
    if not is_there(address):
        return kill(settings)  # which says why it cannot
    os.kill(address.pid, signal.SIGTERM)
    if not wait_until_gone(address.pid, timeout_s):
        raise not_answering(settings, str(address), timeout_s)
    return address.pid


def not_answering(settings: Settings, where: str, timeout_s: float, asked: str = "to stop") -> DaemonUnreachable:
    """What to say of a daemon of this machine that was asked something and has not answered in time."""
    pid = running_pid(settings)
    if pid is None:
        return DaemonUnreachable(
            f"the daemon ({where}) ended before it answered {asked}",
            hint=f"`cwtool daemon start` starts another; the log of this one is {settings.daemon_log}",
        )
    state = condition(settings)
    why = f": it is {state}" if state else ""
    goes_on = f"`kill -CONT {pid}` lets it go on; " if state == STOPPED else ""
    return DaemonUnreachable(
        f"the daemon ({where}) did not answer {asked} within {timeout_s:g} s{why}",
        hint=f"{goes_on}`cwtool daemon stop --force` or `cwtool daemon restart --force` kills it; "
        f"its log is {settings.daemon_log}",
    )


def _wait_hint(address: Address) -> str:
    return f"the system still holds process {address.pid}, perhaps for a disk or a network drive; it is gone when that answers"


def start(settings: Settings) -> bool:
    """Start a daemon and wait until it answers. False where one runs already. Raises DaemonNotStartable with its reason."""
    if running_pid(settings):
        return False
    reader, writer = os.pipe()
    with os.fdopen(reader) as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", SERVER_MODULE, str(writer)],
                pass_fds=[writer],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=_environment(settings),
                cwd="/",
            )
        except OSError as error:
            raise DaemonNotStartable(f"no process can be started: {error.strerror}", PROCESSES_HINT) from error
        finally:
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
