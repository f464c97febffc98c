"""Commands from the daemon to its worker, read by a thread of its own; and from the next daemon when that one is gone."""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
import time
from collections import deque

from cwa_daemon.pipe.messages import CancelJob, Command, EndWorker, RunJob, UnloadModel, Written, command_reader
from cwa_daemon.pipe.place import Place, check_peer
from cwa_daemon.worker.outbox import Outbox
from cwa_engine.base.errors import Refused

WAIT_S = 10.0  # for another daemon, once the job is done that this process had when its own ended
LOOK_S = 0.5  # between two looks whether that is so


class Inbox:
    """Commands in their order, except those that are obeyed at once: a cancel only marks its run, an end ends the process."""

    def __init__(self, connection: socket.socket, outbox: Outbox, place: Place) -> None:
        self._commands: queue.SimpleQueue[RunJob | UnloadModel] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._news = threading.Condition()  # something was cancelled
        self._outbox = outbox
        self._place = place
        self._listener = _listener(place)
        # Run ids. The next one comes as soon as the daemon has heard how a job ended, before that is put away here.
        self._jobs: deque[str] = deque()
        threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def next(self, timeout_s: float | None = None) -> RunJob | UnloadModel | None:
        """The next command; None where none came in time."""
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def job_done(self) -> None:
        """The first of the jobs that this process has is done."""
        self._jobs.popleft()

    @property
    def _job(self) -> str | None:
        """The run id of the job to go on with, once the daemon is gone."""
        return self._jobs[-1] if self._jobs else None

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
        reader = command_reader()
        while chunk := _received(connection):
            for command in reader.feed(chunk):
                self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case CancelJob():
                with self._news:
                    self._cancelled.add(command.run_id)
                    self._news.notify_all()
            case Written():
                self._outbox.forget(command.number)
            case EndWorker():
                os._exit(0)
            case RunJob():
                self._jobs.append(command.run_id)
                self._commands.put(command)
            case UnloadModel():
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
