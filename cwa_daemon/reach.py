"""Connecting a client's socket to its daemon, and saying at once why that is not possible.

ZeroMQ itself tries for ever and says nothing; what it does on the way can be heard on a monitor.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from cwa_daemon import lifecycle
from cwa_daemon.settings import Settings
from cwa_engine.errors import DaemonUnreachable, Refused

PRESENT_S = 5.0  # for a daemon that runs to take a connection
LOOK_AGAIN_S = 1.0  # for its socket to take one, before its address is read again
_ENDS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


async def connect_here(socket: zmq.asyncio.Socket, settings: Settings) -> str:
    """Connect to the daemon that runs on this machine; gives which it is, in words.

    Raises NoDaemon where none runs, and DaemonUnreachable where its socket is not to be seen from here.
    """
    with _monitored(socket, zmq.EVENT_CONNECTED) as monitor:
        try:
            async with asyncio.timeout(PRESENT_S):
                while True:
                    address = lifecycle.find(settings)  # anew each time, for it may have bound another socket
                    if await _takes(socket, f"ipc://{address.socket}", monitor):
                        return str(address)
        except TimeoutError:
            raise DaemonUnreachable(
                f"nobody answers at {address.socket}, the socket of the daemon of {settings.home} "
                f"(pid {address.pid} on {address.machine})",
                hint="it may run on another machine or in another container: end it there, or set CWTOOL_HOME to "
                "a folder that only this one has",
            ) from None


async def connect_to_host(socket: zmq.asyncio.Socket, settings: Settings, name: str) -> str:
    """Connect to a daemon on another machine, by its name in `daemon hosts`; gives which it is, in words.

    Raises NotFound for an unknown name, Refused where this user's key is not allowed there, and DaemonUnreachable.
    """
    from cwa_daemon import keys  # only these connections need keys, and each import is a wait

    host, own = keys.find_host(settings, name), keys.own_pair(settings)
    keys.secure(socket, host, own)
    with _monitored(socket, _ENDS) as monitor:
        _connect(socket, host.address)
        try:
            async with asyncio.timeout(PRESENT_S):
                end = parse_monitor_message(await monitor.recv_multipart())["event"]
        except TimeoutError:
            raise DaemonUnreachable(
                f"no daemon of {name} answers at {host.address}",
                hint="does it run there, and listen (`cwtool daemon start --listen ...`)? Does a firewall let it?",
            ) from None
    if end == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        raise Refused(
            f"the daemon of {name} does not allow your key",
            hint=f"there: `cwtool daemon keys allow NAME {shlex.quote(own.public)}`",
        )
    if end != zmq.EVENT_HANDSHAKE_SUCCEEDED:
        raise DaemonUnreachable(
            f"what answers at {host.address} has not the key of {name}",
            hint=f"`cwtool daemon keys` there shows its key, for `cwtool daemon hosts add {name} {host.address} 'KEY'`",
        )
    return f"{name} at {host.address}"


async def _takes(socket: zmq.asyncio.Socket, endpoint: str, monitor: zmq.asyncio.Socket) -> bool:
    """Whether somebody takes a connection at an endpoint; where nobody does it is given up."""
    _connect(socket, endpoint)
    try:
        await asyncio.wait_for(monitor.recv_multipart(), LOOK_AGAIN_S)
    except TimeoutError:
        socket.disconnect(endpoint)
        return False
    return True


def _connect(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise DaemonUnreachable(
            f"{endpoint} is no address to connect to: {error}", hint="`cwtool daemon hosts` lists those you have given"
        ) from error


@contextmanager
def _monitored(socket: zmq.asyncio.Socket, events: int) -> Iterator[zmq.asyncio.Socket]:
    monitor = socket.get_monitor_socket(events)
    try:
        yield monitor
    finally:
        socket.disable_monitor()
        monitor.close()
