"""The full-screen interface, measured from outside: a pseudo-terminal, real keys, a real daemon and a real run."""

from __future__ import annotations

import fcntl
import os
import pty
import re
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
from cwa_tui.store.preferences import FILE

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

    def wait_for(self, pattern: str, after: int = 0) -> None:
        """Wait until what a regular expression describes is sent. A text is sent whole where its line is drawn anew."""
        with self._grown:
            if not self._grown.wait_for(lambda: re.search(pattern.encode(), self._sent[after:]), PATIENCE_S):
                raise TimeoutError(f"{pattern!r} is not on screen")

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

    def resident(self) -> int:
        """Its resident memory, in bytes."""
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
    """The interface, with its first screen drawn; nothing is remembered of one before."""
    (settings.home / FILE).unlink(missing_ok=True)
    shown = Interface(settings, columns, lines)
    try:
        shown.wait_for(r"runs 1-\d+ of")
        yield shown
    finally:
        shown.close()


def at_rest(seconds: float = IDLE_S) -> tuple[dict[tuple[int, int], Load], int]:
    """What an idle interface takes at both sizes, and its resident memory in bytes."""
    with own_daemon() as settings:
        _finished(settings, _short())
        loads, memory = {}, 0
        for size in SIZES:
            with interface(settings, *size) as shown:
                shown.load_over(5)  # the first samples of a history fill it
                loads[size] = shown.load_over(seconds)
                memory = max(memory, shown.resident())
    return loads, memory


def during_a_run() -> dict[tuple[int, int], Load]:
    """What the screen of a run takes while the run goes on, at both sizes."""
    with own_daemon() as settings:
        _finished(settings, _short())  # the model is warm afterwards
        return {size: _load_of_a_run(settings, size) for size in SIZES}


def _load_of_a_run(settings: Settings, size: tuple[int, int]) -> Load:
    ended = threading.Event()
    with interface(settings, *size) as shown, Client.connect(settings) as client:
        run_id = client.submit(_many_events())

        def follow() -> None:
            for event in client.follow(run_id):
                if event["kind"] == "baseline":  # scores may be known from the run before
                    going_on.set()
            ended.set()
            going_on.set()

        going_on = threading.Event()
        follower = threading.Thread(target=follow)
        follower.start()
        shown.wait_for("running", after=shown.sent)
        shown.press(b"g\r")  # the latest run is the first row
        going_on.wait()
        load = shown.load_until(ended, PATIENCE_S)
        follower.join()
    return load


def many_rows(rounds: int) -> tuple[Spread, Spread, int]:
    """Seconds to open a run of 100,000 weights, and to jump to its last row; and resident memory after that, in bytes."""
    opened, jumped, memory = [], [], 0
    with own_daemon() as settings:
        _finished(settings, _short(topk=(MANY,)))
        for _ in range(rounds):
            with interface(settings, *SIZES[0]) as shown:
                began, before = time.perf_counter(), shown.press(b"\r")
                shown.wait_for(rf"1-\d+ of {MANY:,}", before)  # the line below the table
                opened.append(time.perf_counter() - began)
                began, before = time.perf_counter(), shown.press(b"G")
                shown.wait_for(f"-{MANY:,} of {MANY:,}", before)
                jumped.append(time.perf_counter() - began)
                memory = max(memory, shown.resident())
    return spread(opened), spread(jumped), memory


def _finished(settings: Settings, spec: RunSpec) -> None:
    with Client.connect(settings) as client:
        run_id = client.submit(spec)
        list(client.follow(run_id))
        assert client.job(run_id).state == "done"


def _short(topk: tuple[int, ...] = (10,)) -> RunSpec:
    return RunSpec(model=MODEL, eval_limit=2, topk=topk, perturbations=(), seq_len=32)


def _many_events() -> RunSpec:
    """Half a minute of SmolLM2 with a point of damage every few seconds."""
    return RunSpec(model=MODEL, eval_limit=4, topk=(1, 10, 100), control_seeds=5, seq_len=64)
