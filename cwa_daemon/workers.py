"""The processes that compute: start, talk to, stop and kill them. One per device.

A worker reads commands from its standard input and writes messages to its standard output, both msgpack streams; what
it prints goes to its log. Its standard input is also its death pipe: when the control process is gone, it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from cwa_engine.errors import WorkerDied

LOG_TAIL_LINES = 5
LOG_BYTES = 5 * 2**20  # of a worker's log, before it is set aside

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # cuda:0 is 0 to NVML and nvidia-smi; by itself CUDA puts the fastest first
    "PYTHONUTF8": "1",  # names of models and files go into the log, whatever the shell that started the daemon can show
    "PYTHONIOENCODING": "utf-8:backslashreplace",
}


class Worker:
    """A running worker process. `on_message` hears each of its messages, `on_death` once why it ended."""

    def __init__(
        self,
        device: str,
        log_file: Path,
        on_message: Callable[[dict[str, Any]], None],
        on_death: Callable[[WorkerDied], None],
    ) -> None:
        self.device = device
        self.log_file = log_file
        self._on_message = on_message
        self._on_death = on_death
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_heard = time.monotonic()
        self._killed_because = ""

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
                env={**os.environ, **_ENVIRONMENT},
            )
        self._reader = asyncio.create_task(self._read())

    def send(self, command: dict[str, Any]) -> None:
        """Queue a command; a worker that is dead or dying does not hear it, and `on_death` says so."""
        assert self._process and self._process.stdin
        if not self._process.stdin.is_closing():
            self._process.stdin.write(msgpack.packb(command))

    def kill(self, because: str = "") -> None:
        """End the worker at once; `because` is what `on_death` hears."""
        if self.pid:
            self._killed_because = because
            os.kill(self.pid, signal.SIGKILL)

    def rotate_log(self) -> None:
        """Set a long log aside. The worker appends to the same file, so it is copied and emptied, not renamed."""
        with contextlib.suppress(OSError):  # there is none yet, or the disk is full: a log is not worth a worker
            if self.log_file.stat().st_size > LOG_BYTES:
                shutil.copyfile(self.log_file, self.log_file.with_suffix(".log.1"))
                os.truncate(self.log_file, 0)

    async def stop(self, grace_s: float) -> None:
        """End the worker: close its input, and kill it where that is not enough."""
        assert self._process and self._process.stdin and self._reader
        self._process.stdin.close()
        try:
            await asyncio.wait_for(asyncio.shield(self._reader), grace_s)
        except TimeoutError:
            self.kill()
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
        because = self._killed_because or _how_it_ended(self.device, code)
        self._on_death(WorkerDied(because, hint=_log_hint(self.log_file)))


def _how_it_ended(device: str, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"the worker of {device} was killed (SIGKILL), by hand or by the system for want of memory"
    if code < 0:
        return f"the worker of {device} died of {signal.Signals(-code).name}"
    return f"the worker of {device} ended with exit code {code}"


def _log_hint(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:] if log_file.exists() else []
    tail = "".join(f"\n  {line[:200]}" for line in lines)
    return f"`cwtool jobs retry` runs it again; the end of {log_file}:{tail}"
