"""The process that holds warm models and runs analyses: commands in on stdin, messages out on stdout.

A thread reads commands from the first line on, before torch is imported: a cancel is heard while a run computes, and the
end of the control process, which closes the pipe, ends this process at once.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from typing import Any, BinaryIO

import msgpack


class Inbox:
    """Commands in their order, except `cancel`, which only marks its run."""

    def __init__(self, stream: BinaryIO) -> None:
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def next(self) -> dict[str, Any]:
        return self._commands.get()

    def is_cancelled(self, run_id: str) -> bool:
        return run_id in self._cancelled

    def _read(self, stream: BinaryIO) -> None:
        unpacker = msgpack.Unpacker()
        while chunk := os.read(stream.fileno(), 2**16):
            unpacker.feed(chunk)
            for command in unpacker:
                if command["op"] == "cancel":
                    self._cancelled.add(command["run_id"])
                else:
                    self._commands.put(command)
        os._exit(0)  # the control process is gone or wants us gone; nothing here outlives it


class Outbox:
    """Messages to the control process, each one msgpack map."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, **message: Any) -> None:
        self._stream.write(msgpack.packb(message))
        self._stream.flush()


def main() -> None:
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints to stdout goes to the log, not between the messages
    inbox = Inbox(os.fdopen(os.dup(0), "rb", buffering=0))
    from cwa_daemon.work import Work  # torch is imported here, after the reader has begun to watch the pipe

    work = Work(device=sys.argv[1], inbox=inbox, outbox=Outbox(messages))
    while True:
        work.obey(inbox.next())


if __name__ == "__main__":
    main()
