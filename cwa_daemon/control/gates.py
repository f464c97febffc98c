"""Gates: connections are accepted, bounded and checked here, before ZeroMQ sees them.

ZeroMQ accepts every connection, and ends the whole process where no descriptor is left for one more. So it listens at a private
socket alone, and a gate stands before it: it takes connections as far as there are places, passes one on when it begins as
ZeroMQ's clients do, and from then on carries bytes both ways. What is encrypted passes through as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

log = logging.getLogger(__name__)

HEADROOM = 40  # descriptors for everything else: a daemon with a worker and a plan has 26 open
EACH = 3  # descriptors of a connection: the client's, and both ends of the one to the private socket
MOST_PLACES = 1024
SILENCE_S = 5.0  # for a client to begin as ZeroMQ does, and for ZeroMQ's handshake after that
BACKLOG = 128  # connections that the system keeps until they are taken
STOP_READING_BYTES = 2**20  # that a client has not read: until it has, no more is read of what it asks
MOST_UNREAD_BYTES = 96 * 2**20  # that a client has not read: it is closed; more than the largest reply
MOST_UNREAD_IN_ALL = 4 * MOST_UNREAD_BYTES
_SIGNATURE_BYTES = 10  # that ZMTP begins with: ff, eight bytes of padding, 7f (RFC 23 of ZeroMQ)
_MOST_OPEN = 65536

Who = Callable[[socket.socket], str | None]  # whose a connection is; None: it may not come in


def raise_limit() -> int:
    """Let this process open as many files as the system lets it; gives how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else _MOST_OPEN


def places(most_open: int, doors: int) -> int:
    """How many connections each of so many gates may hold, of the descriptors that the process may have open."""
    return max(2, min(MOST_PLACES, (most_open - HEADROOM) // EACH // doors))


class Gate:
    """Takes connections for one door.

    `who` names the peer of a connection. One peer may hold `share` of the places. A client counts as let in once the door has
    sent it more than `handshake_bytes`. Where no place is left the client that has been silent longest goes: first of those not
    let in. One that was let in connects again by itself when it has something to ask.
    """

    def __init__(self, inner: Callable[[], Path], who: Who, places: int, share: int, handshake_bytes: int) -> None:
        self.inner = inner
        self.handshake_bytes = handshake_bytes
        self._who = who
        self._places = places
        self._share = share
        self._listener: socket.socket | None = None
        self._clients: dict[ClientSide, None] = {}  # in the order in which they came
        self._empty = asyncio.Event()
        self._empty.set()
        self._loop = asyncio.get_running_loop()

    def listen(self, listener: socket.socket) -> None:
        """Take connections at a bound socket from now on, instead of at the one before."""
        self.stop_listening()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listener = listener
        self._loop.add_reader(listener, self._take)

    def stop_listening(self) -> None:
        if self._listener:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def look_after(self) -> None:
        """Once a second: close who was not let in for long, and the greediest where too much waits to be read."""
        long_ago = self._loop.time() - SILENCE_S
        for client in list(self._clients):
            if not client.admitted and client.came < long_ago - SILENCE_S * client.has_begun:
                client.close()
        while sum(client.unread_bytes for client in self._clients) > MOST_UNREAD_IN_ALL:
            max(self._clients, key=lambda client: client.unread_bytes).close()

    async def finish(self, patience_s: float) -> None:
        """The door has closed: let clients read what was sent to them, and close."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), patience_s)
        for client in list(self._clients):
            client.close()

    def gone(self, client: ClientSide) -> None:
        """Neither the client nor ZeroMQ has a descriptor of this connection any more."""
        self._clients.pop(client, None)
        if not self._clients:
            self._empty.set()

    def _take(self) -> None:
        """Take one connection; others are taken in the next turns of the loop, when those that had to go are gone."""
        assert self._listener
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor is left, though there should be
            log.error("no connection can be taken: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(1.0, self._listen_again, self._listener)
            return
        peer = self._who(connection)
        if peer is None or not self._make_room(peer):
            connection.close()
            return
        client = ClientSide(self, peer, self._loop)
        self._clients[client] = None
        self._empty.clear()
        client.begin(connection)

    def _listen_again(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self._loop.add_reader(listener, self._take)

    def _make_room(self, peer: str) -> bool:
        """Whether there is a place for one more. Where there is none somebody has to go, and has gone in the next turn."""
        of_peer = [client for client in self._clients if client.peer == peer]
        too_many = (
            of_peer if len(of_peer) >= self._share else self._clients if len(self._clients) >= self._places else ()
        )
        staying = [client for client in too_many if not client.closing]
        if staying:
            (_first_not_let_in(staying) or min(staying, key=lambda client: client.heard)).close()
        return len(self._clients) <= self._places


def _first_not_let_in(clients: list[ClientSide]) -> ClientSide | None:
    return next((client for client in clients if not client.admitted), None)


class ClientSide(asyncio.Protocol):
    """A connection: the side of the client."""

    def __init__(self, gate: Gate, peer: str, loop: asyncio.AbstractEventLoop) -> None:
        self.peer = peer
        self.came = self.heard = loop.time()
        self.has_begun = False  # as ZeroMQ's clients do
        self.admitted = False
        self.closing = False
        self._gate = gate
        self._loop = loop
        self._outside: asyncio.Transport | None = None
        self._inside: asyncio.Transport | None = None  # to the door's private socket
        self._task: asyncio.Task[Any] | None = None  # that makes one of the two
        self._first = b""  # what came before the door was asked
        self._held: set[str] = set()  # why nothing is read of the client now
        self._sent_bytes = 0

    @property
    def unread_bytes(self) -> int:
        """What was sent to the client and waits here."""
        return self._outside.get_write_buffer_size() if self._outside else 0

    def begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: self, connection))

    def close(self) -> None:
        self.closing = True
        if self._outside:
            self._outside.abort()

    # of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._outside = cast(asyncio.Transport, transport)
        self._outside.set_write_buffer_limits(high=STOP_READING_BYTES)
        if self.closing:
            self._outside.abort()

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        if self._inside:
            self._inside.write(data)
            return
        self._first += data
        if len(self._first) < _SIGNATURE_BYTES or self.has_begun:
            return
        if self._first[0] != 0xFF or self._first[_SIGNATURE_BYTES - 1] != 0x7F:
            self.close()
            return
        self.has_begun = True
        self.hold("no door yet")
        self._task = self._loop.create_task(self._connect_socket())

    def pause_writing(self) -> None:
        self.hold("it does not read")

    def resume_writing(self) -> None:
        self.release("it does not read")

    def connection_lost(self, error: Exception | None) -> None:
        self._outside, self.closing = None, True
        if self._inside:
            self._inside.write_eof()  # ZeroMQ closes its end then, and only then the place is free
        elif not self.has_begun:
            self._gate.gone(self)

    # the side of the private socket

    async def _connect_socket(self) -> None:
        try:
            await self._loop.create_unix_connection(lambda: SocketSide(self), str(self._gate.inner()))
        except OSError as error:
            log.warning("the door does not open: %s", error)
            self.socket_closed()

    def socket_connected(self, inside: asyncio.Transport) -> None:
        self._inside = inside
        inside.write(self._first)
        self._first = b""
        self.release("no door yet")
        if self._outside is None:
            inside.write_eof()

    def send_to_client(self, data: bytes) -> None:
        """Pass on what the door says."""
        if self._outside is None:
            return
        self._sent_bytes += len(data)
        self.admitted = self.admitted or self._sent_bytes > self._gate.handshake_bytes
        self._outside.write(data)
        if self.unread_bytes > MOST_UNREAD_BYTES:
            log.warning("a client that does not read what it asked for is cut off")
            self.close()

    def socket_closed(self) -> None:
        """The door has ended the connection, or there was none."""
        self._inside = None
        if self._outside:
            self.closing = True
            self._outside.close()  # once the client has read what was sent
        self._gate.gone(self)

    def hold(self, reason: str) -> None:
        self._held.add(reason)
        if self._outside:
            self._outside.pause_reading()

    def release(self, reason: str) -> None:
        self._held.discard(reason)
        if self._outside and not self._held:
            self._outside.resume_reading()


class SocketSide(asyncio.Protocol):
    """A connection: the side of the private socket."""

    def __init__(self, client: ClientSide) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.socket_connected(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._client.send_to_client(data)

    def pause_writing(self) -> None:
        self._client.hold("the door is busy")

    def resume_writing(self) -> None:
        self._client.release("the door is busy")

    def connection_lost(self, error: Exception | None) -> None:
        self._client.socket_closed()
