"""The processes that compute: start, adopt, talk to, stop and kill them. One per device.

A worker reads commands from a stream socket and writes reports to it (`pipe/messages.py`); what it prints goes to its
log. It has one end of the socket as its standard input. When the daemon is gone it goes on with the job it has, and
another daemon connects to it where `pipe/place.py` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.deaths import Cause, Death
from cwa_daemon.control.endings import how_it_ended, memory_kills
from cwa_daemon.pipe.messages import Command, EndWorker, Report, encode, report_reader
from cwa_daemon.pipe.place import Place, check_peer
from cwa_engine.machine.memory import allocator_settings
from cwa_engine.machine.processors import thread_settings

LOG_TAIL_LINES = 5
# A large process that was killed needs seconds to be gone. The system's kills are counted once a second, and only so long
# after a heartbeat, so that the first of the last counts is from before.
_LIVES_S = 2.0
_KILLS_KEPT = 6
LOG_BYTES = 5 * 2**20  # of a worker's log, before it is set aside
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # cuda:0 is 0 to NVML and nvidia-smi; by itself CUDA puts the fastest first
    "PYTHONUTF8": "1",  # names of models and files go into the log, whatever the shell that started the daemon can show
    "PYTHONIOENCODING": "utf-8:backslashreplace",
}


class _AdoptedProcess:
    """A process that is no child of this one. The part of `asyncio.subprocess.Process` that a worker needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None  # 0 once it is gone: what it returned is not known
        self._fd = os.pidfd_open(pid)
        self._gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._see_it_go)

    def kill(self) -> None:
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    async def wait(self) -> None:
        await self._gone.wait()

    def _see_it_go(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self.returncode = 0
        self._gone.set()


class WorkerProcess:
    """A running worker process. `on_report` hears each of its reports, `on_death` why it ended, unless it was asked to.

    `sharers` lanes, its own included, share the processors.
    """

    def __init__(
        self,
        place: Place,
        log_file: Path,
        clock: AwakeClock,
        on_report: Callable[[Report], None],
        on_death: Callable[[Death], None],
        sharers: int = 1,
    ) -> None:
        self.device = place.lane
        self.log_file = log_file
        self._place = place
        self._clock = clock
        self._on_report = on_report
        self._on_death = on_death
        self._sharers = sharers
        self._process: asyncio.subprocess.Process | _AdoptedProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_heard = clock()
        self._killed_because: Death | None = None
        self._asked_to_end = False
        self._memory_kills = deque([memory_kills()], maxlen=_KILLS_KEPT)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def silence_s(self) -> float:
        """Seconds since anything was heard; a worker that computes still gives its heartbeat."""
        return self._clock() - self._last_heard

    async def start(self) -> None:
        """Begin a process. Raises OSError, BlockingIOError where another worker of this lane lives."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with self._place.take_lock() as lock, theirs, self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "cwa_daemon.worker.main",
                self.device,
                str(self._place.folder),
                str(lock.fileno()),
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # a Ctrl-C in the terminal that started the daemon is not for workers
                env={
                    **thread_settings(os.environ, sharers=self._sharers),
                    **allocator_settings(os.environ),
                    **os.environ,
                    **_ENVIRONMENT,
                },
            )
        await self._talk(ours)

    async def adopt(self) -> None:
        """Take over the process of an earlier daemon, which then says "hello". Raises OSError where none listens."""
        connection = self._place.connect()
        try:
            self._process = _AdoptedProcess(check_peer(connection))
        except BaseException:
            connection.close()
            raise
        await self._talk(connection)

    async def _talk(self, connection: socket.socket) -> None:
        self._last_heard = self._clock()
        reader, self._writer = await asyncio.open_connection(sock=connection)
        self._reader = asyncio.create_task(self._read(reader))

    def send(self, command: Command) -> None:
        """Queue a command; a worker that is dead or dying does not hear it, and `on_death` says so."""
        assert self._writer
        if not self._writer.is_closing():
            self._writer.write(encode(command))

    def kill(self, because: str, hint: str = "") -> None:
        """End the worker at once. `on_death` hears why, `because` "it hung" for instance, and what to do then."""
        if self._process and self.pid and not self._killed_because:
            self._killed_because = Death(f"the worker of {self.device} was killed: {because}", Cause.ITSELF, hint)
            self._process.kill()

    def look_after(self) -> None:
        """Once a second: set a long log aside, and while the worker lives note how many the system has killed so far."""
        if self.silence_s < _LIVES_S:
            self._memory_kills.append(memory_kills())
        self._rotate_log()

    def _rotate_log(self) -> None:
        """The worker appends to the same file, so it is copied and emptied, not renamed."""
        with contextlib.suppress(OSError):  # there is none yet, or the disk is full: a log is not worth a worker
            if self.log_file.stat().st_size > LOG_BYTES:
                shutil.copyfile(self.log_file, self.log_file.with_suffix(".log.1"))
                os.truncate(self.log_file, 0)

    async def stop(self, grace_s: float) -> None:
        """End the worker: ask it to, and kill it where that is not enough."""
        assert self._reader
        self._asked_to_end = True
        self.send(EndWorker())
        try:
            await asyncio.wait_for(asyncio.shield(self._reader), grace_s)
        except TimeoutError:
            self.kill(f"it did not end within {grace_s:g} s of being asked to")
            await self._reader

    async def _read(self, reader: asyncio.StreamReader) -> None:
        assert self._process and self._writer
        reports = report_reader()
        with contextlib.suppress(ConnectionError):  # which a process that was killed leaves behind
            while chunk := await reader.read(2**16):
                self._last_heard = self._clock()
                for report in reports.feed(chunk):
                    self._on_report(report)
        code = await self._process.wait()
        self._writer.close()
        self._place.clear()
        death = self._killed_because or how_it_ended(self.device, code, self._memory_kills[0])
        if not self._asked_to_end:
            hint = "; ".join(filter(None, (death.hint, _log_hint(self.log_file))))
            self._on_death(dataclasses.replace(death, hint=hint))


def _log_hint(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if log_file.exists() else []
    tail = "".join(f"\n  {line[:200]}" for line in lines)
    return f"`cwtool jobs retry` runs it again; the end of {log_file}:{tail}"
