"""Starting and stopping the daemon of this machine, and asking one elsewhere to stop."""

from __future__ import annotations

import dataclasses

from cwa_daemon.admin import lifecycle
from cwa_daemon.base.in_force import not_taken
from cwa_daemon.base.settings import Settings
from cwa_daemon.client.answers import Stopped
from cwa_daemon.client.sync_client import Client
from cwa_daemon.pipe import place
from cwa_engine.base.errors import DaemonUnreachable, NoDaemon, VersionMismatch


def start_daemon(settings: Settings | None = None, listen: str | None = None) -> bool:
    """Start a daemon and wait until it answers; False where one ran already. Raises DaemonNotStartable.

    With `listen`, tcp://HOST:PORT, it also takes connections from other machines.
    """
    return lifecycle.start(_with_listen(settings or Settings(), listen))


def _with_listen(settings: Settings, listen: str | None) -> Settings:
    return settings.model_copy(update={"listen": listen}) if listen else settings


def settings_not_taken(settings: Settings | None = None, listen: str | None = None) -> list[str]:
    """What is set here, with `listen` as `start_daemon` has it, and otherwise in the daemon that runs, in words.

    Raises NoDaemon, DaemonUnreachable.
    """
    settings = _with_listen(settings or Settings(), listen)
    with Client.connect(settings, start=False) as client:
        return not_taken(settings, client.status().settings)


def stop_daemon(
    settings: Settings | None = None, timeout_s: float | None = 30.0, when_idle: bool = False, force: bool = False
) -> Stopped | None:
    """Stop the daemon, if asked only when nothing runs, and wait until its process is gone; None where none ran.

    The end of one on another machine is not waited for. One that speaks another version of the protocol is asked by SIGTERM.
    One that does not answer, or does not end, is killed with `force`; without it that raises DaemonUnreachable, which says
    what it does.
    """
    settings = settings or Settings()
    force = force and not settings.host
    try:
        if force and lifecycle.condition(settings) == lifecycle.STOPPED:  # it cannot answer
            return Stopped(lifecycle.kill(settings), [], 0, by_force=True)
        with Client.connect(settings, start=False) as client:
            stopped = client.shutdown(when_idle)
    except NoDaemon:
        if not settings.host:
            place.end_all(settings.workers)  # which finish what they were at when their daemon was killed
        return None
    except VersionMismatch:
        if settings.host or when_idle:
            raise
        try:
            return Stopped(lifecycle.terminate(settings, settings.request_timeout_s), [], 0, by_force=True)
        except DaemonUnreachable:
            if not force:
                raise
            return Stopped(lifecycle.kill(settings), [], 0, by_force=True)
    except DaemonUnreachable:
        if not force:
            raise
        return Stopped(lifecycle.kill(settings), [], 0, by_force=True)
    if not settings.host and not lifecycle.wait_until_gone(stopped.pid, timeout_s):
        if force:
            lifecycle.kill(settings)
            return dataclasses.replace(stopped, by_force=True)
        raise DaemonUnreachable(
            f"the daemon (pid {stopped.pid}) has not stopped in {timeout_s} s",
            hint="`cwtool daemon stop --force` kills it",
        )
    return stopped
