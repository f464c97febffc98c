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
import time
from collections import deque
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from typing import Any

import zmq
import zmq.asyncio

from cwa_daemon import leftovers, protocol, telemetry
from cwa_daemon.doors import Door, LocalDoor, RemoteDoor
from cwa_daemon.folder_lock import FolderLock, hold_lock
from cwa_daemon.handlers import HANDLERS, Reply
from cwa_daemon.jobs import Jobs
from cwa_daemon.security import state_folder
from cwa_daemon.settings import Settings
from cwa_daemon.store import Store
from cwa_daemon.subscriptions import Subscriptions
from cwa_daemon.supervise import STEADY_S, Troubles, in_words, supervise
from cwa_daemon.texts import KeptTexts
from cwa_engine import __version__
from cwa_engine.errors import CwaError, NotGreeted, Refused, RunFailed, VersionMismatch
from cwa_engine.reporting.export import library_versions

log = logging.getLogger(__name__)

TICK_S = 1.0
HISTORY = 300  # samples of telemetry, one a tick


class Server:
    """One daemon: its socket, its store, its jobs and who follows them."""

    def __init__(self, settings: Settings, lock: FolderLock) -> None:
        self.settings = settings
        self.lock = lock
        self.started = time.time()
        library_versions()  # those it began with: to read them takes longer than to answer who asks
        self.store = Store(settings.database)
        self.subscriptions = Subscriptions(self.store, self.send, asyncio.get_running_loop())
        self.troubles = Troubles()
        self.jobs = Jobs(self.store, settings, self.subscriptions.on_event, self.troubles)
        self.texts = KeptTexts(settings.texts, settings.texts_bytes, self.store.data_files)
        self.stopping = asyncio.Event()
        self.draining: asyncio.Task[None] | None = None  # until what runs has ended
        self.history: deque[protocol.Sample] = deque(maxlen=HISTORY)
        self._greeted: dict[bytes, int] = {}  # who has said hello -> its minor version of the protocol
        self._context = zmq.asyncio.Context()
        self.doors: dict[bytes, Door] = {}

    def open_doors(self) -> None:
        """Begin to listen. The lock is held."""
        doors: list[Door] = []
        if self.settings.listen:
            doors.append(RemoteDoor(self._context, self.settings, self.settings.listen))
        doors.append(LocalDoor(self._context, self.settings))
        for door in doors:
            door.open()
            self.doors[door.tag] = door

    async def serve(self) -> None:
        """Answer until asked to stop, then end the workers and close."""
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        await self.texts.sweep()
        receivers = [
            supervise(f"the receiver of {door}", functools.partial(self._receive, door), self.troubles)
            for door in self.doors.values()
        ]
        ticker = supervise("the ticker", self._tick, self.troubles)
        await self.stopping.wait()
        ticker.cancel()
        await self.jobs.stop()
        for receiver in receivers:
            receiver.cancel()
        for door in self.doors.values():
            door.close()
        self._context.term()
        self.store.close()

    async def _tick(self) -> None:
        """Once a second: look after the lock, the database, jobs and doors, and sample memory."""
        looks: dict[str, Callable[[], object]] = {
            "the lock": self.lock.look_after,
            "the job database": self.store.look_after,
            "jobs": self.jobs.tick,
            **{str(door): door.look_after for door in self.doors.values()},
            "telemetry": lambda: self.history.append(self.sample()),
        }
        while True:
            for name, look in looks.items():
                self._look_after(name, look)
            if self.store.trouble:
                self.troubles.report("the job database", self.store.trouble)
            await asyncio.sleep(TICK_S)

    def _look_after(self, name: str, look: Callable[[], object]) -> None:
        """One of the things that are looked after each second; where that fails, the others are all the same."""
        subject = f"looking after {name}"
        try:
            look()
        except Exception as error:
            sentence = f"{subject} fails: {in_words(error)}"
            if self.troubles.report(subject, sentence):  # once, and not each second
                log.exception("%s", sentence)
        else:
            self.troubles.clear(subject)

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback or a task that nobody awaits has raised."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self.troubles.report("a task", f"a task of the daemon failed: {in_words(error)}; see the log")
            loop.call_later(STEADY_S, self.troubles.clear, "a task")
        loop.default_exception_handler(context)

    def sample(self) -> protocol.Sample:
        """What devices and the daemon's processes use now."""
        return telemetry.sample([os.getpid(), *self.jobs.worker_pids()])

    async def _receive(self, door: Door) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while True:
            frames = await door.socket.recv_multipart(copy=False)
            if len(frames) != 2:
                continue
            task = asyncio.create_task(self._answer(door, door.tag + frames[0].bytes, frames[1]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _answer(self, door: Door, identity: bytes, frame: zmq.Frame) -> None:
        """One request to its handler; whatever is wrong with it, the client hears and the daemon lives."""
        request_id = None
        try:
            message = protocol.decode(frame.bytes)
            request_id = message.get("id")
            door.check(frame)
            reply = await self._handle(identity, message)
        except CwaError as error:
            if isinstance(error, Refused):
                self._forget(identity)  # nor is it told of events any more
            reply = {"ok": False, "error": error.to_dict()}
        except Exception as error:
            log.exception("a request failed")
            defect = RunFailed(f"the daemon failed: {error}", hint=f"see {self.settings.daemon_log}")
            reply = {"ok": False, "error": defect.to_dict()}
        if reply is not None:
            self.send(identity, {"id": request_id, **reply})

    async def _handle(self, identity: bytes, message: dict[str, Any]) -> Reply | None:
        if message.get("op") == "hello":
            return self._greet(identity, message)
        if identity not in self._greeted:
            raise NotGreeted("a connection begins with hello")
        request = protocol.parse_request(message)
        reply = await HANDLERS[type(request)](self, identity, request)
        return None if reply is None else {"ok": True, **reply}

    def _greet(self, identity: bytes, message: dict[str, Any]) -> Reply:
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

    def send(self, identity: bytes, message: dict[str, Any]) -> bool:
        """Send without waiting. False for a client that is gone or whose buffer is full."""
        socket = self.doors[identity[:1]].socket
        sent: Any = socket.send_multipart([identity[1:], protocol.encode(message)], zmq.DONTWAIT)
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
        self.subscriptions.forget(identity)

    def takes_several_events(self, identity: bytes) -> bool:
        """Whether a client understands messages with more than one event."""
        return self._greeted.get(identity, 0) >= protocol.SEVERAL_EVENTS_SINCE


async def _serve(settings: Settings, lock: FolderLock, ready: Callable[[str], None]) -> None:
    server = Server(settings, lock)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, server.stopping.set)
    server.jobs.recover()  # before it is said to be ready: a damaged database is a reason not to start
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
