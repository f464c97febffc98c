"""A worker process. `python -m cwa_daemon.worker.main DEVICE FOLDER FD` begins one.

Its standard input is a socket to the daemon that started it. A thread reads commands from there from the first line on,
before torch is imported, so a cancel is heard while a run computes. When the daemon is gone, a worker that has nothing to
do ends at once; one that has a job goes on with it, keeps what it has to say, and listens for another daemon.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
from pathlib import Path

from cwa_daemon.pipe.messages import RunJob
from cwa_daemon.pipe.place import Place
from cwa_daemon.worker.inbox import Inbox
from cwa_daemon.worker.outbox import Outbox
from cwa_engine.base.importing import without_collections

_PR_SET_PDEATHSIG = 1  # of prctl


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
    with without_collections():  # imports torch, after the reader has begun to watch the connection
        from cwa_daemon.worker.executor import Executor

        gc.freeze()  # nor is there any garbage among it later
    executor = Executor(device, inbox, outbox)
    outbox.memory = executor.memory
    while True:
        command = inbox.next(executor.seconds_to_next_expiry())
        if command is None:
            executor.expire()
        else:
            executor.obey(command)
            if isinstance(command, RunJob):
                inbox.job_done()


if __name__ == "__main__":
    main()
