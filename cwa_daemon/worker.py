"""The process that holds warm models and runs analyses: commands in on stdin, messages out on stdout.

A thread reads commands from the first line on, before torch is imported: a cancel is heard while a run computes, and the
end of the control process, which closes the pipe, ends this process at once.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import msgpack

HEARTBEAT_S = 1.0


class Inbox:
    """Commands in their order, except `cancel`, which only marks its run."""

    def __init__(self, stream: BinaryIO) -> None:
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._news = threading.Condition()  # something was cancelled
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def next(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """The next command; None where none came in time."""
        try:
            return self._commands.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def is_cancelled(self, run_id: str) -> bool:
        return run_id in self._cancelled

    def wait_for_cancel(self, run_id: str, timeout_s: float) -> bool:
        """Wait, at most so long, for the run to be cancelled; whether it was."""
        with self._news:
            return self._news.wait_for(lambda: run_id in self._cancelled, timeout_s)

    def _read(self, stream: BinaryIO) -> None:
        unpacker = msgpack.Unpacker()
        while chunk := os.read(stream.fileno(), 2**16):
            unpacker.feed(chunk)
            for command in unpacker:
                if command["op"] == "cancel":
                    with self._news:
                        self._cancelled.add(command["run_id"])
                        self._news.notify_all()
                else:
                    self._commands.put(command)
        os._exit(0)  # the control process is gone or wants us gone; nothing here outlives it


class Outbox:
    """Messages to the control process, each one msgpack map; and a heartbeat, from a thread of its own."""

    def __init__(self, stream: BinaryIO) -> None:
        self.memory: Callable[[], dict[str, int] | None] = lambda: None  # of the device; sent with each heartbeat
        self._stream = stream
        self._one_at_a_time = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, **message: Any) -> None:
        with self._one_at_a_time:
            self._stream.write(msgpack.packb(message))
            self._stream.flush()

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            # Of all threads but this one: whether anything is computed.
            self.send(type="heartbeat", processor_s=time.process_time() - time.thread_time(), memory=self.memory())


def main() -> None:
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints to stdout goes to the log, not between the messages
    inbox, outbox = Inbox(os.fdopen(os.dup(0), "rb", buffering=0)), Outbox(messages)
    from cwa_daemon.work import Work  # torch is imported here, after the reader has begun to watch the pipe

    work = Work(device=sys.argv[1], inbox=inbox, outbox=outbox)
    outbox.memory = work.memory
    while True:
        command = inbox.next(work.seconds_to_next_expiry())
        if command is None:
            work.expire()
        else:
            work.obey(command)


if __name__ == "__main__":
    main()
