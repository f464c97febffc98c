"""The processes that compute: start, talk to, stop and kill them. One per device.

A worker reads commands from its standard input and writes messages to its standard output, both msgpack streams; what
it prints goes to its log. Its standard input is also its death pipe: when the control process is gone, it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from cwa_daemon.deaths import Cause, Death
from cwa_daemon.endings import how_it_ended, memory_kills
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


class Worker:
    """A running worker process. `on_message` hears each of its messages, `on_death` why it ended, unless it was asked to."""

    def __init__(
        self,
        device: str,
        log_file: Path,
        on_message: Callable[[dict[str, Any]], None],
        on_death: Callable[[Death], None],
    ) -> None:
        self.device = device
        self.log_file = log_file
        self._on_message = on_message
        self._on_death = on_death
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_heard = time.monotonic()
        self._killed_because: Death | None = None
        self._asked_to_end = False
        self._memory_kills = deque([memory_kills()], maxlen=_KILLS_KEPT)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def silence_s(self) -> float:
        """Seconds since anything was heard; a worker that computes still gives its heartbeat."""
        return time.monotonic() - self._last_heard

    async def start(self) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._last_heard = time.monotonic()
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "cwa_daemon.worker",
                self.device,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal that started the daemon is not for workers
                env={**thread_settings(os.environ), **allocator_settings(os.environ), **os.environ, **_ENVIRONMENT},
            )
        self._reader = asyncio.create_task(self._read())

    def send(self, command: dict[str, Any]) -> None:
        """Queue a command; a worker that is dead or dying does not hear it, and `on_death` says so."""
        assert self._process and self._process.stdin
        if not self._process.stdin.is_closing():
            self._process.stdin.write(msgpack.packb(command))

    def kill(self, because: str, hint: str = "") -> None:
        """End the worker at once. `on_death` hears why, `because` "it hung" for instance, and what to do then."""
        if self.pid and not self._killed_because:
            self._killed_because = Death(f"the worker of {self.device} was killed: {because}", Cause.ITSELF, hint)
            os.kill(self.pid, signal.SIGKILL)

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
        """End the worker: close its input, and kill it where that is not enough."""
        assert self._process and self._process.stdin and self._reader
        self._asked_to_end = True
        self._process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._reader), grace_s)
        except TimeoutError:
            self.kill(f"it did not end within {grace_s:g} s of being asked to")
            await self._reader

    async def _read(self) -> None:
        assert self._process and self._process.stdout
        unpacker = msgpack.Unpacker(max_buffer_size=256 * 2**20)
        while chunk := await self._process.stdout.read(2**16):
            self._last_heard = time.monotonic()
            unpacker.feed(chunk)
            for message in unpacker:
                self._on_message(message)
        code = await self._process.wait()
        death = self._killed_because or how_it_ended(self.device, code, self._memory_kills[0])
        if not self._asked_to_end:
            hint = "; ".join(filter(None, (death.hint, _log_hint(self.log_file))))
            self._on_death(dataclasses.replace(death, hint=hint))


def _log_hint(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if log_file.exists() else []
    tail = "".join(f"\n  {line[:200]}" for line in lines)
    return f"`cwtool jobs retry` runs it again; the end of {log_file}:{tail}"
