"""One client's connection to its daemon: requests, replies and events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import zmq
import zmq.asyncio

from cwa_daemon import protocol
from cwa_daemon.admin import lifecycle
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import reach
from cwa_engine import __version__
from cwa_engine.base.errors import DaemonUnreachable, InvalidInput, NotGreeted, RunFailed, error_from_dict
from cwa_engine.base.plain import JsonMap

_HELLO = {"major": protocol.PROTOCOL_MAJOR, "minor": protocol.PROTOCOL_MINOR, "version": __version__}


class Connection:
    """A socket to the daemon, and the one task that reads from it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.daemon_version = ""
        self.minor = 0  # version of the protocol that the daemon speaks
        self.ended = asyncio.Event()  # set while the connection has ended, and no daemon was greeted since
        self.greetings = 0  # one more each time a daemon began anew behind the same socket
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[JsonMap]] = {}
        self._parts: dict[int, list[bytes]] = {}  # of replies that are not whole yet
        self._events: dict[int, asyncio.Queue[JsonMap]] = {}  # by the number of the subscription
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        self._link = reach.Link()
        self._receiver: asyncio.Task[None] | None = None

    @property
    def where(self) -> str:
        """Which daemon this is, in words."""
        return self._link.where

    async def open(self, start: bool) -> None:
        """Connect and say hello; with `start` a daemon is started where there is none."""
        settings, patience_s = self.settings, self.settings.request_timeout_s
        if settings.host:
            self._link = await reach.connect_to_host(self._socket, settings, settings.host)
        else:
            if start and await asyncio.to_thread(lifecycle.start, settings):
                patience_s = settings.start_timeout_s
            self._link = link = reach.LocalLink(self._socket, settings, self._lost)
            await link.connect()
        self._receiver = asyncio.create_task(self._receive())
        await self._greet(patience_s)

    async def close(self) -> None:
        if self._receiver:
            self._receiver.cancel()
        self._link.close()
        self._socket.close()
        self._context.term()

    def events(self, subscription: int) -> asyncio.Queue[JsonMap]:
        """Where the events of a subscription arrive."""
        return self._events[subscription]

    def forget_events(self, subscription: int) -> None:
        self._events.pop(subscription, None)

    async def request(self, op: str, timeout_s: float | None = None, **fields: Any) -> JsonMap:
        """Send a request and wait for its reply. Raises the error the daemon answers, or DaemonUnreachable.

        A daemon that was started anew is greeted, and asked again: it has refused without doing anything. That one may end
        before it is asked as well, so each that refuses is greeted.
        """
        while True:
            try:
                return await self._ask(op, timeout_s, **fields)
            except NotGreeted:
                await self._greet(timeout_s or self.settings.request_timeout_s)

    async def _greet(self, timeout_s: float) -> None:
        hello = await self._ask("hello", timeout_s, **_HELLO)
        self.daemon_version, self.minor = hello["version"], hello.get("minor", 0)
        self.greetings += 1
        self.ended.clear()

    async def _ask(self, op: str, timeout_s: float | None = None, **fields: Any) -> JsonMap:
        request_id = next(self._ids)
        reply = self._replies[request_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s or self.settings.request_timeout_s):
                await self._send(op, id=request_id, **fields)
                message: JsonMap = await reply
        except TimeoutError:
            if not self.settings.host:
                patience_s = timeout_s or self.settings.request_timeout_s
                raise await asyncio.to_thread(
                    lifecycle.not_answering, self.settings, self.where, patience_s, f"'{op}'"
                ) from None
            raise self._silent("did not answer", op) from None
        finally:
            self._replies.pop(request_id, None)
            self._parts.pop(request_id, None)
        if message.get("lost"):
            raise self._silent("hung up before it answered", op)
        if not message["ok"]:
            raise error_from_dict(message["error"])
        return message

    def _silent(self, what: str, op: str) -> DaemonUnreachable:
        restart = f"`cwtool daemon restart` ends it, and starts another; its log is {self.settings.daemon_log}"
        return DaemonUnreachable(
            f"the daemon ({self.where}) {what} '{op}'",
            hint=f"look after it on {self.settings.host}" if self.settings.host else restart,
        )

    def _lost(self) -> None:
        """The connection has ended: what was asked on it, and has no reply yet, is not answered any more."""
        self.ended.set()
        self._take_what_came()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_result({"lost": True})

    async def tell(self, op: str, **fields: Any) -> None:
        """Send what nobody answers; where there is no connection it has no meaning any more."""
        if self._link.up and not self._socket.closed:
            with contextlib.suppress(zmq.Again):
                await self._socket.send(self._frame(op, **fields), zmq.DONTWAIT)

    async def _send(self, op: str, **fields: Any) -> None:
        frame = self._frame(op, **fields)
        while True:
            await self._link.ready()
            if self._socket.closed:
                raise DaemonUnreachable(f"the connection to the daemon ({self.where}) was closed", hint="ask again")
            try:
                await self._socket.send(frame, zmq.DONTWAIT)
            except zmq.Again:  # the connection has just ended, or nobody reads from it
                self._link.drop()
            else:
                return

    def _frame(self, op: str, **fields: Any) -> bytes:
        fields.setdefault("id", next(self._ids))
        return protocol.encode({"op": op, **fields}, protocol.MAX_REQUEST_BYTES)

    async def _receive(self) -> None:
        """Wait for messages. They are taken by `_take_what_came` alone, which `_lost` calls as well.

        `await recv()` would hold a message in its future until this task has its turn. A connection that ends in that moment
        would count as lost before the reply, and the reply would be thrown away.
        """
        while True:
            await self._socket.poll()
            self._take_what_came()

    def _take_what_came(self) -> None:
        """Take in every message that is here, in order, without waiting."""
        socket: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)
        with contextlib.suppress(zmq.Again):
            while True:
                self._heard(socket.recv(zmq.DONTWAIT))

    def _heard(self, frame: bytes) -> None:
        """Take in one message: a reply, a part of one, or events."""
        try:
            message = protocol.decode(frame, protocol.MAX_REPLY_BYTES, protocol.MAX_REPLY_ELEMENTS)
        except InvalidInput as error:
            unreadable = RunFailed(
                f"the daemon's answer cannot be read: {error.message}", hint="its version may differ"
            )
            self._answered(protocol.peek(frame)[1], {"ok": False, "error": unreadable.to_dict()})
            return
        if "id" not in message:  # it comes unasked; an older daemon sends events one by one
            arrived = self._events.get(message["subscription"])
            if arrived is not None:  # or its follower has left in the meantime
                for event in message["events"] if "events" in message else [message["event"]]:
                    arrived.put_nowait(event)
            return
        if "part" in message:
            self._join(message)
            return
        if "subscription" in message:  # its events may come before the one who asked looks at this reply
            self._events[message["subscription"]] = asyncio.Queue()
        self._answered(message["id"], message)

    def _join(self, part: JsonMap) -> None:
        """Keep a part of a reply that somebody waits for, and read the reply when it is whole."""
        request_id = part["id"]
        if request_id not in self._replies:
            return
        pieces = self._parts.setdefault(request_id, [])
        pieces.append(part["data"])
        if len(pieces) == part["parts"]:
            self._heard(b"".join(self._parts.pop(request_id)))

    def _answered(self, request_id: int | None, message: JsonMap) -> None:
        reply = self._replies.get(request_id) if request_id is not None else None
        if reply and not reply.done():
            reply.set_result(message)
