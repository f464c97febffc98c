"""The control process: requests in, replies and events out. It waits and never computes.

Every event is in the store before it is sent; `subscriptions.py` tells those who follow.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from typing import Any

import zmq
import zmq.asyncio

from cwa_daemon import protocol
from cwa_daemon.base.folder_lock import FolderLock, hold_lock
from cwa_daemon.base.security import state_folder
from cwa_daemon.base.settings import Settings
from cwa_daemon.control import gates, leftovers
from cwa_daemon.control.doors import Door, LocalDoor, RemoteDoor
from cwa_daemon.control.handlers import HANDLERS, NAMING_RUNS, Reply
from cwa_daemon.control.headlines import read_missing
from cwa_daemon.control.permissions import Caller, check_role
from cwa_daemon.control.service import Service
from cwa_daemon.control.supervise import STEADY_S, in_words, supervise
from cwa_engine import __version__
from cwa_engine.base.errors import CwaError, InvalidInput, NotGreeted, QueueFull, Refused, RunFailed, VersionMismatch
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.export import library_versions

log = logging.getLogger(__name__)

TICK_S = 1.0
FINISH_S = 1.0  # for clients to read what was sent to them last


class Server:
    """One daemon: its doors, and the service behind them."""

    def __init__(self, settings: Settings, lock: FolderLock) -> None:
        self.settings = settings
        self.lock = lock
        library_versions()  # those it began with: reading them takes longer than answering a request
        self.service = Service(settings, self.send)
        self._unanswered: Counter[bytes] = Counter()  # requests of each connection
        self._greeted: dict[bytes, int] = {}  # who has said hello -> its minor version of the protocol
        self._context = zmq.asyncio.Context()
        self.doors: dict[bytes, Door] = {}

    def open_doors(self) -> None:
        """Begin to listen. The lock is held."""
        places = gates.places(gates.raise_limit(), doors=2 if self.settings.listen else 1)
        doors: list[Door] = []
        if self.settings.listen:
            doors.append(RemoteDoor(self._context, self.settings, places, self.settings.listen))
        doors.append(LocalDoor(self._context, self.settings, places))
        for door in doors:
            door.open()
            self.doors[door.tag] = door

    async def serve(self) -> None:
        """Answer until asked to stop, then end the workers and close."""
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        await self.service.texts.sweep()
        receivers = [
            supervise(f"the receiver of {door}", functools.partial(self._receive, door), self.service.troubles)
            for door in self.doors.values()
        ]
        ticker = supervise("the ticker", self._tick, self.service.troubles)
        found_runs = supervise(
            "the look at the folder of runs", lambda: self.service.found_runs.look_after(TICK_S), self.service.troubles
        )
        headlines = supervise("the reader of headlines", self._read_headlines, self.service.troubles)
        await self.service.stopping.wait()
        ticker.cancel()
        headlines.cancel()
        found_runs.cancel()
        await self.service.close()
        for receiver in receivers:
            receiver.cancel()
        await self._close_doors()
        self.service.store.close()

    async def _close_doors(self) -> None:
        """Let what was sent go out to its clients, then end their connections."""
        for door in self.doors.values():
            door.close()
        await asyncio.to_thread(self._context.term)
        await asyncio.gather(*(door.gate.finish(FINISH_S) for door in self.doors.values()))

    async def _read_headlines(self) -> None:
        await read_missing(self.service.store, self.settings.runs)

    async def _tick(self) -> None:
        """Once a second: look after the lock, the database, jobs and doors, and sample memory."""
        looks: dict[str, Callable[[], object]] = {
            "the lock": self.lock.look_after,
            "the job database": self.service.store.look_after,
            "jobs": self.service.jobs.tick,
            **{str(door): door.look_after for door in self.doors.values()},
            "telemetry": lambda: self.service.samples.append(self.service.sample()),
        }
        while True:
            for name, look in looks.items():
                self._look_after(name, look)
            if self.service.store.trouble:
                self.service.troubles.report("the job database", self.service.store.trouble)
            await asyncio.sleep(TICK_S)

    def _look_after(self, name: str, look: Callable[[], object]) -> None:
        """One of the things that are looked after each second; where that fails, the others are all the same."""
        subject = f"looking after {name}"
        try:
            look()
        except Exception as error:
            sentence = f"{subject} fails: {in_words(error)}"
            if self.service.troubles.report(subject, sentence):  # once, and not each second
                log.exception("%s", sentence)
        else:
            self.service.troubles.clear(subject)

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback or a task that nobody awaits has raised."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self.service.troubles.report("a task", f"a task of the daemon failed: {in_words(error)}; see the log")
            loop.call_later(STEADY_S, self.service.troubles.clear, "a task")
        loop.default_exception_handler(context)

    async def _receive(self, door: Door) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while True:
            frames = await door.socket.recv_multipart(copy=False)
            await asyncio.sleep(0)  # `recv` does not give way while there is more, and others are to have their turn
            if len(frames) != 2:
                continue
            identity = door.tag + frames[0].bytes
            if self._unanswered[identity] >= protocol.MOST_UNANSWERED:
                self._reply(identity, protocol.peek(_beginning(frames[1]))[1], _failed(_too_many()))
                continue
            self._unanswered[identity] += 1
            task = asyncio.create_task(self._answer(door, identity, frames[1]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _answer(self, door: Door, identity: bytes, frame: zmq.Frame) -> None:
        """One request to its handler; whatever is wrong with it, the client hears and the daemon lives."""
        op, request_id = protocol.peek(_beginning(frame))
        try:
            caller = self._caller(door, identity, frame)
            if op != "hello" and identity not in self._greeted:
                raise NotGreeted("a connection begins with hello")
            most = protocol.MAX_HELLO_BYTES if op == "hello" else protocol.MAX_REQUEST_BYTES
            message = protocol.decode(frame.bytes, most)  # only now, as it costs the most
            request_id = message.get("id")
            reply = await self._handle(caller, message)
        except CwaError as error:
            reply = _failed(error)
        except Exception as error:
            log.exception("a request failed")
            reply = _failed(RunFailed(f"the daemon failed: {error}", hint=f"see {self.settings.daemon_log}"))
        finally:
            self._unanswered[identity] -= 1
            if not self._unanswered[identity]:
                del self._unanswered[identity]
        if reply is not None:
            self._reply(identity, request_id, reply)

    def _caller(self, door: Door, identity: bytes, frame: zmq.Frame) -> Caller:
        try:
            return door.caller(identity, frame, self._greeted.get(identity, 0))
        except Refused:
            self._forget(identity)  # nor is it told of events any more
            raise

    async def _handle(self, caller: Caller, message: JsonMap) -> Reply | None:
        if message.get("op") == "hello":
            return self._greet(caller.identity, message)
        request = protocol.parse_request(message)
        check_role(caller, request)
        if isinstance(request, NAMING_RUNS):
            await self.service.found_runs.look_soon()
        reply = await HANDLERS[type(request)](self.service, caller, request)
        return None if reply is None else {"ok": True, **reply}

    def _greet(self, identity: bytes, message: JsonMap) -> Reply:
        """HELLO is read before its form is checked, so that a client of another major version is understood."""
        if message.get("major") != protocol.PROTOCOL_MAJOR:
            raise VersionMismatch(
                f"this daemon is cwtool {__version__} and speaks protocol {protocol.PROTOCOL_MAJOR}, "
                f"the client {message.get('version')} speaks {message.get('major')}",
                hint="`cwtool daemon restart` starts a daemon of your version",
            )
        minor = message.get("minor")
        self._greeted[identity] = minor if isinstance(minor, int) else 0
        while len(self._greeted) > 4096:  # the oldest connections are long gone; one that is not greets again
            del self._greeted[next(iter(self._greeted))]
        return {"ok": True, "major": protocol.PROTOCOL_MAJOR, "minor": protocol.PROTOCOL_MINOR, "version": __version__}

    def _reply(self, identity: bytes, request_id: Any, reply: Reply) -> None:
        """Answer a request, in parts where that is too large for a message. What cannot be sent is an error, never silence."""
        joins = self._greeted.get(identity, 0) >= protocol.PARTS_SINCE
        most = protocol.MAX_REPLY_BYTES if joins else protocol.MAX_MESSAGE_BYTES
        try:
            frame = protocol.encode({"id": request_id, **reply}, most)
        except InvalidInput as error:
            log.warning("a reply cannot be sent: %s", error.message)
            unsent = RunFailed(
                f"the reply cannot be sent: {error.message}", hint="ask for less, with --limit for instance"
            )
            frame = protocol.encode({"id": request_id, **_failed(unsent)})
        for part in protocol.parts(frame, request_id) if joins else [frame]:
            if not self._send_frame(identity, part):
                log.warning("a client takes no reply: it is gone, or does not read")
                return

    def send(self, identity: bytes, message: JsonMap) -> bool:
        """Send without waiting. False for a client that is gone or whose buffer is full.

        What is no text, as a file's name may be, is shown by its codes: an event is to arrive in any case.
        """
        return self._send_frame(identity, protocol.encode(message, unicode_errors="backslashreplace"))

    def _send_frame(self, identity: bytes, frame: bytes) -> bool:
        socket = self.doors[identity[:1]].socket
        sent: Any = socket.send_multipart([identity[1:], frame], zmq.DONTWAIT)
        error = sent.exception()  # with DONTWAIT the future is done at once
        if isinstance(error, zmq.Again):
            return False
        if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
            self._forget(identity)
            return False
        if error:
            raise error
        return True

    def _forget(self, identity: bytes) -> None:
        self._greeted.pop(identity, None)
        self.service.subscriptions.forget(identity)


def _beginning(frame: zmq.Frame) -> bytes:
    """What `peek` looks at, without a copy of the rest."""
    return bytes(frame.buffer[:128])


def _failed(error: CwaError) -> Reply:
    return {"ok": False, "error": error.to_dict()}


def _too_many() -> QueueFull:
    return QueueFull(
        f"{protocol.MOST_UNANSWERED} requests of this connection are not answered yet", hint="wait for their replies"
    )


async def _serve(settings: Settings, lock: FolderLock, ready: Callable[[str], None]) -> None:
    server = Server(settings, lock)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, server.service.stopping.set)
    server.service.jobs.recover()  # before it is said to be ready: a damaged database is a reason not to start
    server.open_doors()
    ready("")
    log.info("cwtool %s serves %s", __version__, settings.home)
    await server.serve()
    log.info("stopped")


def main() -> None:
    """Serve until stopped. The first argument may be a file descriptor that hears "ready" or why not."""
    report = os.fdopen(int(sys.argv[1]), "w") if len(sys.argv) > 1 else None

    def ready(problem: str) -> None:
        nonlocal report
        if report:
            report.write(problem or "ready")
            report.close()
            report = None
            if not problem:  # from now on nobody reads our standard error, so it goes to the log
                with settings.daemon_log.open("ab") as file:
                    os.dup2(file.fileno(), sys.stderr.fileno())

    try:
        settings = Settings()
        state_folder(settings.home)
        settings.logs.mkdir(exist_ok=True, mode=0o700)
        settings.runs.mkdir(exist_ok=True, mode=0o700)
        settings.empty_folder.mkdir(exist_ok=True, mode=0o700)
        os.chdir(settings.empty_folder)
        handler = RotatingFileHandler(
            settings.daemon_log, maxBytes=5_000_000, backupCount=3, encoding="utf-8", errors="backslashreplace"
        )
        logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(message)s")
        with hold_lock(settings) as lock:
            leftovers.remove(settings)
            asyncio.run(_serve(settings, lock, ready))
    except CwaError as error:
        ready(f"{error.message}\n{error.hint}")
        sys.exit(f"{error.message}\n{error.hint}")


if __name__ == "__main__":
    main()
