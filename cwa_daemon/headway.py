"""Whether the job of a worker gets on. A heartbeat comes from a thread of its own, so it says nothing of the work."""

from __future__ import annotations

import time
from typing import Any

# Processor seconds. A worker that waits uses none beside its heartbeat, whose own are not counted; one that computes, or
# reads 1 MB a second, uses more within minutes.
_COMPUTED_S = 0.02


class Headway:
    """When a job was last heard of, and when it last computed. Times are of `time.monotonic`."""

    def __init__(self) -> None:
        self._stage = "start"
        self._said = self._computed = time.monotonic()
        self._processor_s: float | None = None

    def heard(self, message: dict[str, Any]) -> None:
        """Take note of any message of the worker."""
        now = time.monotonic()
        if message["type"] != "heartbeat":
            self._said = self._computed = now
            self._stage = message.get("event", {}).get("stage", self._stage)
            return
        used = message["processor_s"]
        if self._processor_s is None or used - self._processor_s >= _COMPUTED_S:
            self._processor_s, self._computed = used, now

    def complaint(self, idle_s: float, step_s: float) -> str:
        """Why the job counts as stuck; empty while it gets on.

        It is stuck after `idle_s` in which it has neither said nor computed anything, and after `step_s` without a word.
        """
        now = time.monotonic()
        if now - self._computed > idle_s:
            waited = f"has neither computed nor said anything for {now - self._computed:.0f} s"
            return f"its stage '{self._stage}' {waited}, as if a file or a network drive did not answer"
        if now - self._said > step_s:
            return f"its stage '{self._stage}' computes and has not come further for {now - self._said:.0f} s"
        return ""
