"""Connecting a client's socket to its daemon, and saying at once why that is not possible.

ZeroMQ itself tries for ever and says nothing; what it does on the way can be heard on a monitor. A `Link` is the client's
connection: wait for its `ready` before sending.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket as unix
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from cwa_daemon.base import address as addresses
from cwa_daemon.base.security import check_socket, peer_of
from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import DaemonUnreachable, NoDaemon, Refused, UnsafePlace

PRESENT_S = 5.0  # for a daemon that runs to take a connection
_NEVER_MS = 10**9  # eleven days; -1 would have ZeroMQ drop replies that came just before a connection ended
LOOK_AGAIN_S = 0.1  # before the address of a daemon that took none is read again
_ENDS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


class Link:
    """A client's connection to its daemon; `where` says in words which one that is."""

    def __init__(self, where: str = "") -> None:
        self.where = where

    @property
    def up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return True

    async def ready(self) -> None:
        """Wait until what is sent now goes to the daemon. Raises UnsafePlace."""

    def drop(self) -> None:
        """Nothing can be sent: what there was of a connection is to be made anew. Raises DaemonUnreachable where it cannot."""
        raise DaemonUnreachable(
            f"{self.where} takes nothing more", hint="it may hang; close the connection and try again"
        )

    def close(self) -> None:
        """Let go of the socket, before it is closed."""


class LocalLink(Link):
    """To the daemon of this machine. Each connection is checked before anything is sent, one that is made anew as well.

    Everything on the way must be this user's: the file with the address, the folders, the socket, the process behind it.
    `on_loss` is called when a connection has ended: what came on it can still be received, and then nothing more.
    """

    def __init__(self, socket: zmq.asyncio.Socket, settings: Settings, on_loss: Callable[[], None]) -> None:
        super().__init__()
        socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)  # or ZeroMQ would send on a new one that nobody has checked
        self._socket = socket
        self._settings = settings
        self._on_loss = on_loss
        self._monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._endpoint: str | None = None
        self._attempt: asyncio.Future[int | None] | None = (
            None  # the descriptor of the connection; None: nobody took it
        )
        self._checked = False
        self._trouble: DaemonUnreachable | None = None  # why there is no connection yet
        self._one_at_a_time = asyncio.Lock()
        self._watching = asyncio.create_task(self._watch())

    @property
    def up(self) -> bool:
        return self._checked

    async def connect(self) -> None:
        """Connect for the first time.

        Raises NoDaemon where none runs, UnsafePlace for what another user could have put there, and DaemonUnreachable where its
        socket is not to be seen from here.
        """
        try:
            async with asyncio.timeout(PRESENT_S):
                await self._reach(wait_for_a_daemon=False)
        except TimeoutError:
            assert self._trouble
            raise self._trouble from None

    async def ready(self) -> None:
        if not self._checked:
            async with self._one_at_a_time:
                await self._reach(wait_for_a_daemon=True)

    def drop(self) -> None:
        if self._endpoint:
            with contextlib.suppress(zmq.ZMQError):  # ZeroMQ has given it up already
                self._socket.disconnect(self._endpoint)
        self._endpoint, self._checked = None, False

    def close(self) -> None:
        self._watching.cancel()
        self._socket.disable_monitor()
        self._monitor.close()

    async def _reach(self, wait_for_a_daemon: bool) -> None:
        """Connect; where nobody takes it again and again, for the daemon may have bound another socket or be another one."""
        while not self._checked:
            try:
                address = addresses.find(self._settings)  # anew each time
                self._trouble = _nobody_answers(address, self._settings)
                if await self._takes(address):
                    self.where, self._checked = str(address), True
                    return
            except NoDaemon:
                if not wait_for_a_daemon:
                    raise
            except DaemonUnreachable as trouble:
                self._trouble = trouble
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _takes(self, address: addresses.Address) -> bool:
        """Whether this user's daemon takes a connection there. Raises UnsafePlace where it may be somebody else."""
        try:
            check_socket(address.socket)
        except OSError:  # there is none
            return False
        self._attempt = asyncio.get_running_loop().create_future()
        self._endpoint = f"ipc://{address.socket}"
        _connect(self._socket, self._endpoint)
        taken = False
        try:
            descriptor = await self._attempt
            taken = descriptor is not None and _is_ours(descriptor, address)
        finally:
            if not taken:
                self.drop()
        return taken

    async def _watch(self) -> None:
        """Note when a connection begins and ends."""
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            begins = event["event"] == zmq.EVENT_CONNECTED
            if self._attempt and not self._attempt.done():
                self._attempt.set_result(event["value"] if begins else None)
            elif self._checked and not begins:
                self._on_loss()
                self.drop()


def _is_ours(descriptor: int, address: addresses.Address) -> bool:
    """Whether a connection leads to a process of this user; False for one that has ended. Raises UnsafePlace."""
    try:
        with unix.socket(fileno=os.dup(descriptor)) as connection:
            _, uid = peer_of(connection)
    except OSError:
        return False
    if uid != os.getuid():
        raise UnsafePlace(
            f"another user (uid {uid}) answers at {address.socket}, the socket of the daemon",
            hint=f"nothing was sent; end the daemon (`kill {address.pid}`), remove {address.socket.parent}, and start it anew",
        )
    return True


def _nobody_answers(address: addresses.Address, settings: Settings) -> DaemonUnreachable:
    return DaemonUnreachable(
        f"nobody answers at {address.socket}, the socket of the daemon of {settings.home} "
        f"(pid {address.pid} on {address.machine})",
        hint="it may run on another machine or in another container: end it there, or set CWTOOL_HOME to "
        "a folder that only this one has",
    )


async def connect_to_host(socket: zmq.asyncio.Socket, settings: Settings, name: str) -> Link:
    """Connect to a daemon on another machine, by its name in `daemon hosts`. Its key is checked with each connection.

    Raises NotFound for an unknown name, Refused where this user's key is not allowed there, and DaemonUnreachable.
    """
    from cwa_daemon.base import keys

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
    return Link(f"{name} at {host.address}")


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
