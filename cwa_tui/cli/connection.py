"""How a command reaches its daemon, and what it tells the daemon of itself."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cwa_engine import __version__
from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli.output import say

if TYPE_CHECKING:
    from cwa_daemon.client import Client


@contextmanager
def connect(start: bool = True) -> Iterator[Client]:
    """A client of the daemon in use. Without one it starts a daemon, or raises NoDaemon with `start=False`."""
    from cwa_daemon.client import Client

    with Client.connect(start=start) as client:
        if client.daemon_version != __version__:
            say(
                f"the daemon is cwtool {client.daemon_version}, this command is {__version__}; "
                "`cwtool daemon restart --when-idle` brings them together"
            )
        yield client


def choose_host(name: str) -> None:
    """Send this command to the daemon of another machine. Raises InvalidInput for an empty name."""
    if not name.strip():
        raise InvalidInput(
            "--host is empty", hint="`cwtool daemon hosts` lists names; without --host it is this machine"
        )
    os.environ["CWTOOL_HOST"] = name


def chosen_host() -> str | None:
    """The name given with --host or in CWTOOL_HOST; None for this machine."""
    return os.environ.get("CWTOOL_HOST")


def refuse_other_host(command: str) -> None:
    """Raise InvalidInput where --host is given to a command that is about this machine."""
    if host := chosen_host():
        raise InvalidInput(f"`cwtool {command}` is about the machine it is typed on", hint=f"type it on {host}")


def command_typed() -> str:
    """The command line as it was typed, for the manifest."""
    return shlex.join(["cwtool", *sys.argv[1:]])
