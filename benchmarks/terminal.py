"""The full-screen interface, measured from outside: a pseudo-terminal, real keys, a real daemon and a real run."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.measure import Spread, spread
from benchmarks.service import CWTOOL, MODEL, own_daemon
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import Client
from cwa_engine.spec import RunSpec

SIZES = ((80, 24), (160, 48))
IDLE_S, MANY = 30.0, 100_000
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Load:
    """What an interface took while nobody touched it."""

    processor: float  # share of one core
    bytes_s: float  # sent to the terminal


class Interface:
    """`cwtool tui` in a terminal that counts what it is sent."""

    def __init__(self, settings: Settings, columns: int, lines: int) -> None:
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        env = {**os.environ, "CWTOOL_HOME": str(settings.home), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self._process = subprocess.Popen(
            [CWTOOL, "tui"], stdin=follower, stdout=follower, stderr=follower, env=env, start_new_session=True
        )
        os.close(follower)
        self._sent = bytearray()
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.process = psutil.Process(self._process.pid)

    def press(self, keys: bytes) -> int:
        """Press keys; gives how much was sent before, to wait for what comes after."""
        before = self.sent
        os.write(self._leader, keys)
        return before

    def wait_for(self, text: str, after: int = 0) -> None:
        """Wait until a text is sent. A text is sent whole where its line is drawn anew."""
        with self._grown:
            if not self._grown.wait_for(lambda: text.encode() in self._sent[after:], PATIENCE_S):
                raise TimeoutError(f"{text!r} is not on screen")

    @property
    def sent(self) -> int:
        with self._grown:
            return len(self._sent)

    def load_over(self, seconds: float) -> Load:
        """What it takes in the next seconds."""
        return self.load_until(threading.Event(), seconds)

    def load_until(self, ended: threading.Event, at_most_s: float) -> Load:
        began, times, sent = time.perf_counter(), self.process.cpu_times(), self.sent
        ended.wait(at_most_s)
        after, took = self.process.cpu_times(), time.perf_counter() - began
        busy = (after.user + after.system) - (times.user + times.system)
        return Load(busy / took, (self.sent - sent) / took)

    def memory(self) -> int:
        """What is its own of the memory, and not shared with other processes, in bytes."""
        own: int = self.process.memory_full_info().uss
        return own

    def resident(self) -> int:
        rss: int = self.process.memory_info().rss
        return rss

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._leader)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._leader, 65536)
            except OSError:  # the other side is closed
                return
            with self._grown:
                self._sent += chunk
                self._grown.notify_all()


@contextmanager
def interface(settings: Settings, columns: int, lines: int) -> Iterator[Interface]:
    """The interface, with its first screen drawn."""
    shown = Interface(settings, columns, lines)
    try:
        shown.wait_for(MODEL[:6])  # a run in the list
        yield shown
    finally:
        shown.close()
