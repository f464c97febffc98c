"""Messages from a worker to its daemon, kept until the daemon has written them down."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack

HEARTBEAT_S = 1.0
MOST_KEPT = 5000  # messages that no daemon has heard; of progress only the latest counts


class Outbox:
    """Messages to the daemon, each one msgpack map; and a heartbeat, from a thread of its own.

    Events and ends of jobs are numbered, and kept until the daemon has said that it has written them down.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.memory: Callable[[], dict[str, int] | None] = lambda: None  # of the device; sent with each heartbeat
        self._connection: socket.socket | None = connection
        self._one_at_a_time = threading.Lock()
        self._numbers = 0
        self._unheard: deque[dict[str, Any]] = deque(maxlen=MOST_KEPT)
        self._models: dict[str, Any] | None = None  # the last message of that type
        self._stage = "start"
        threading.Thread(target=self._beat, daemon=True).start()

    @property
    def has_news(self) -> bool:
        """Whether there is anything that no daemon has heard."""
        return bool(self._unheard)

    def send(self, **message: Any) -> None:
        with self._one_at_a_time:
            if message["type"] in ("event", "finished"):
                self._keep(message)
            elif message["type"] == "models":
                self._models = message
            self._transmit(message)

    def heard(self, number: int) -> None:
        """Forget what the daemon has written down."""
        with self._one_at_a_time:
            while self._unheard and self._unheard[0]["number"] <= number:
                self._unheard.popleft()

    def detach(self) -> None:
        with self._one_at_a_time:
            self._connection = None

    def attach(self, connection: socket.socket, job: str | None) -> None:
        """Tell another daemon which job this is at, and all that was not heard."""
        with self._one_at_a_time:
            self._connection = connection
            unheard = list(self._unheard)
            ended = [message["run_id"] for message in unheard if message["type"] == "finished"]
            self._transmit({"type": "hello", "run_id": job or (ended[-1] if ended else None), "stage": self._stage})
            for message in [*filter(None, [self._models]), *unheard]:
                self._transmit(message)

    def _keep(self, message: dict[str, Any]) -> None:
        self._numbers += 1
        message["number"] = self._numbers
        self._stage = message.get("event", {}).get("stage", self._stage)
        if self._unheard and _is_progress(message) and _is_progress(self._unheard[-1]):
            self._unheard.pop()
        self._unheard.append(message)

    def _transmit(self, message: dict[str, Any]) -> None:
        if self._connection:
            try:
                self._connection.sendall(msgpack.packb(message))
            except OSError:  # the daemon is gone, as the reader of this connection will find
                self._connection = None

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            # Of all threads but this one: whether anything is computed.
            self.send(type="heartbeat", processor_s=time.process_time() - time.thread_time(), memory=self.memory())


def _is_progress(message: dict[str, Any]) -> bool:
    return bool(message["type"] == "event" and message["event"]["kind"] == "progress")
