"""The process that holds warm models and runs analyses: commands in, messages out, over a stream socket.

Its standard input is a socket to the daemon that started it. A thread reads commands from there from the first line on,
before torch is imported, so a cancel is heard while a run computes. When the daemon is gone, a worker that has nothing to
do ends at once; one that has a job goes on with it, keeps what it has to say, and listens for another daemon.
"""

from __future__ import annotations

import ctypes
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from cwa_daemon.pipe.place import Place, check_peer
from cwa_engine.base.errors import Refused

HEARTBEAT_S = 1.0
WAIT_S = 10.0  # for another daemon, once the job is done that this process had when its own ended
LOOK_S = 0.5  # between two looks whether that is so
MOST_KEPT = 5000  # messages that no daemon has heard; of progress only the latest counts
_PR_SET_PDEATHSIG = 1  # of prctl


class Inbox:
    """Commands in their order, except `cancel`, which only marks its run, and `end`; and which job there is to do."""

    def __init__(self, connection: socket.socket, outbox: Outbox, place: Place) -> None:
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._news = threading.Condition()  # something was cancelled
        self._outbox = outbox
        self._place = place
        self._listener = _listener(place)
        self._job: str | None = None  # its run id
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def next(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next command; None where none came in time."""
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def done(self, command: dict[str, Any]) -> None:
        """What was to be done is done."""
        if command["op"] == "job":
            self._job = None

    def is_cancelled(self, run_id: str) -> bool:
        return run_id in self._cancelled

    def wait_for_cancel(self, run_id: str, timeout_s: float) -> bool:
        """Wait, at most so long, for the run to be cancelled; whether it was."""
        with self._news:
            return self._news.wait_for(lambda: run_id in self._cancelled, timeout_s)

    def _serve(self, connection: socket.socket | None) -> None:
        while connection:
            self._read(connection)
            self._outbox.detach()
            connection = self._next_daemon()
            if connection:
                self._outbox.attach(connection, self._job)
        os._exit(0)

    def _read(self, connection: socket.socket) -> None:
        """Take commands until the daemon is gone."""
        unpacker = msgpack.Unpacker()
        while chunk := _received(connection):
            unpacker.feed(chunk)
            for command in unpacker:
                self._take(command)

    def _take(self, command: dict[str, Any]) -> None:
        match command["op"]:
            case "cancel":
                with self._news:
                    self._cancelled.add(command["run_id"])
                    self._news.notify_all()
            case "heard":
                self._outbox.heard(command["number"])
            case "end":
                os._exit(0)
            case op:
                if op == "job":
                    self._job = command["run_id"]
                self._commands.put(command)

    def _next_daemon(self) -> socket.socket | None:
        """The connection of another daemon; None where there is nothing to wait for any more."""
        idle_since = time.monotonic()
        while self._listener and self._place.address.exists():  # or the state folder is gone
            if self._job is not None:
                idle_since = time.monotonic()
            elif not self._outbox.has_news or time.monotonic() - idle_since > WAIT_S:
                return None
            if select.select([self._listener], [], [], LOOK_S)[0]:
                connection, _ = self._listener.accept()
                try:
                    check_peer(connection)
                    return connection
                except Refused as refused:
                    print(f"a connection was refused: {refused.message}", file=sys.stderr, flush=True)
                    connection.close()
        return None


class Outbox:
    """Messages to the daemon, each one msgpack map; and a heartbeat, from a thread of its own.

    Events and ends of jobs are numbered, and kept until the daemon has said that it has written them down.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.memory: Callable[[], dict[str, int] | None] = lambda: None  # of the device; sent with each heartbeat
        self._connection: socket.socket | None = connection
        self._one_at_a_time = threading.Lock()
        self._numbers = 0
        self._unheard: deque[dict[str, Any]] = deque(maxlen=MOST_KEPT)
        self._models: dict[str, Any] | None = None  # the last message of that type
        self._stage = "start"
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def has_news(self) -> bool:
        """Whether there is anything that no daemon has heard."""
        return bool(self._unheard)

    def send(self, **message: Any) -> None:
        with self._one_at_a_time:
            if message["type"] in ("event", "finished"):
                self._keep(message)
            elif message["type"] == "models":
                self._models = message
            self._transmit(message)

    def heard(self, number: int) -> None:
        """Forget what the daemon has written down."""
        with self._one_at_a_time:
            while self._unheard and self._unheard[0]["number"] <= number:
                self._unheard.popleft()

    def detach(self) -> None:
        with self._one_at_a_time:
            self._connection = None

    def attach(self, connection: socket.socket, job: str | None) -> None:
        """Tell another daemon which job this is at, and all that was not heard."""
        with self._one_at_a_time:
            self._connection = connection
            unheard = list(self._unheard)
            ended = [message["run_id"] for message in unheard if message["type"] == "finished"]
            self._transmit({"type": "hello", "run_id": job or (ended[-1] if ended else None), "stage": self._stage})
            for message in [*filter(None, [self._models]), *unheard]:
                self._transmit(message)

    def _keep(self, message: dict[str, Any]) -> None:
        self._numbers += 1
        message["number"] = self._numbers
        self._stage = message.get("event", {}).get("stage", self._stage)
        if self._unheard and _is_progress(message) and _is_progress(self._unheard[-1]):
            self._unheard.pop()
        self._unheard.append(message)

    def _transmit(self, message: dict[str, Any]) -> None:
        if self._connection:
            try:
                self._connection.sendall(msgpack.packb(message))
            except OSError:  # the daemon is gone, as the reader of this connection will find
                self._connection = None

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            # Of all threads but this one: whether anything is computed.
            self.send(type="heartbeat", processor_s=time.process_time() - time.thread_time(), memory=self.memory())


def _is_progress(message: dict[str, Any]) -> bool:
    return bool(message["type"] == "event" and message["event"]["kind"] == "progress")


def _received(connection: socket.socket) -> bytes:
    """The next bytes; none where the other side is gone."""
    try:
        return connection.recv(2**16)
    except OSError:
        return b""


def _listener(place: Place) -> socket.socket | None:
    try:
        return place.listen()
    except OSError as error:
        print(f"no other daemon can find this worker: {error}", file=sys.stderr, flush=True)
        return None


def _wake_with_the_daemon() -> None:
    """Have the system send SIGCONT when the daemon dies: a worker that was stopped goes on, and notices."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def main() -> None:
    """`worker DEVICE FOLDER FD`: its device, the folder of its socket, and the lock that it holds for life."""
    device, folder, lock = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(lock, False)
    _wake_with_the_daemon()
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what this process starts is not to hold the connection
    outbox = Outbox(connection)
    inbox = Inbox(connection, outbox, Place(folder, device))
    from cwa_daemon.worker.executor import (
        Work,
    )  # torch is imported here, after the reader has begun to watch the connection

    work = Work(device, inbox, outbox)
    outbox.memory = work.memory
    while True:
        command = inbox.next(work.seconds_to_next_expiry())
        if command is None:
            work.expire()
        else:
            work.obey(command)
            inbox.done(command)


if __name__ == "__main__":
    main()
