"""Why a worker ended: by itself, by somebody's signal, or by the system for want of memory."""

from __future__ import annotations

import signal
from pathlib import Path

from cwa_daemon.control.deaths import Cause, Death
from cwa_daemon.pipe.exit_codes import DEVICE_LOST, NO_DEVICE

_MEMORY_HINT = "`cwtool plan` says what a run needs; --gradients sweep, --dtype bfloat16 and --seq-len lower it"
# Signals that somebody sends; the processor and libraries raise others: SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT.
_SENT = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
_BY_ITSELF = {DEVICE_LOST: "ended, because its device failed", NO_DEVICE: "ended, for there is no such device"}


def memory_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since it started, in containers as well.

    None where it does not tell; Linux does since 4.13.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def how_it_ended(device: str, code: int | None, kills_before: int | None) -> Death:
    """The death of a worker with this exit code; `kills_before` is `memory_kills()` of moments before.

    The exit code of a worker that another daemon has started is not known.
    """
    worker = f"the worker of {device}"
    kills = memory_kills()
    if code is None:
        if kills is not None and kills_before is not None and kills > kills_before:
            return Death(
                f"{worker} ended when the system killed a process for want of memory", Cause.ITSELF, _MEMORY_HINT
            )
        return Death(f"{worker}, which an earlier daemon had started, ended", Cause.OTHERS)
    if code == -signal.SIGKILL:
        if kills is None or kills_before is None:
            unknown = f"{worker} was killed (SIGKILL) by another process, or by the system for want of memory"
            return Death(unknown, Cause.OTHERS, _MEMORY_HINT)
        if kills > kills_before:
            return Death(f"{worker} was killed by the system for want of memory", Cause.ITSELF, _MEMORY_HINT)
        told = f"{worker} was killed (SIGKILL) by another process; the system has killed none for want of memory"
        return Death(told, Cause.OTHERS)
    if code < 0:
        cause = Cause.OTHERS if -code in _SENT else Cause.ITSELF
        return Death(f"{worker} died of {signal.Signals(-code).name}", cause)
    return Death(f"{worker} {_BY_ITSELF.get(code, f'ended with exit code {code}')}", Cause.ITSELF)
