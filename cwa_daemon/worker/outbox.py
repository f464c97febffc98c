"""Reports from a worker to its daemon, kept until the daemon has written them down."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from cwa_daemon.pipe.messages import (
    EventReport,
    Finished,
    Heartbeat,
    Hello,
    Memory,
    ModelsReport,
    NumberedReport,
    Report,
    encode,
)

HEARTBEAT_S = 1.0
MOST_KEPT = 5000  # reports that no daemon has written down; of progress only the latest counts


class Outbox:
    """Reports to the daemon, and a heartbeat from a thread of its own.

    Events and ends of jobs are numbered, and kept until the daemon has said that it has written them down.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.memory: Callable[[], Memory | None] = lambda: None  # of the device; sent with each heartbeat
        self._connection: socket.socket | None = connection
        self._one_at_a_time = threading.Lock()
        self._numbers = 0
        self._kept: deque[NumberedReport] = deque(maxlen=MOST_KEPT)
        self._models: ModelsReport | None = None  # the last one
        self._stage = "start"
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def has_news(self) -> bool:
        """Whether there is anything that no daemon has written down."""
        return bool(self._kept)

    def send(self, report: Report) -> None:
        with self._one_at_a_time:
            if isinstance(report, NumberedReport):
                report = self._keep(report)
            elif isinstance(report, ModelsReport):
                self._models = report
            self._transmit(report)

    def forget(self, number: int) -> None:
        """Forget what the daemon has written down."""
        with self._one_at_a_time:
            while self._kept and self._kept[0].number <= number:
                self._kept.popleft()

    def detach(self) -> None:
        with self._one_at_a_time:
            self._connection = None

    def attach(self, connection: socket.socket, job: str | None) -> None:
        """Tell another daemon which job this is at, and all that was not written down."""
        with self._one_at_a_time:
            self._connection = connection
            kept = list(self._kept)
            ended = [report.run_id for report in kept if isinstance(report, Finished)]
            self._transmit(Hello(run_id=job or (ended[-1] if ended else None), stage=self._stage))
            for report in [*filter(None, [self._models]), *kept]:
                self._transmit(report)

    def _keep(self, report: NumberedReport) -> NumberedReport:
        """Number a report, note the time, and keep it. Of progress only the latest is kept."""
        self._numbers += 1
        report = dataclasses.replace(report, number=self._numbers, time=time.time())
        if isinstance(report, EventReport):
            self._stage = report.event.get("stage", self._stage)
        if self._kept and _is_progress(report) and _is_progress(self._kept[-1]):
            self._kept.pop()
        self._kept.append(report)
        return report

    def _transmit(self, report: Report) -> None:
        if self._connection:
            try:
                self._connection.sendall(encode(report))
            except OSError:  # the daemon is gone, as the reader of this connection will find
                self._connection = None

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            # Of all threads but this one: whether anything is computed.
            self.send(Heartbeat(processor_s=time.process_time() - time.thread_time(), memory=self.memory()))


def _is_progress(report: NumberedReport) -> bool:
    return isinstance(report, EventReport) and report.is_progress
