"""Whether the job of a worker gets on. A heartbeat comes from a thread of its own, so it says nothing of the work."""

from __future__ import annotations

from collections.abc import Callable

from cwa_daemon.pipe.messages import EventReport, Heartbeat, Report

# Processor seconds. A worker that waits uses none beside its heartbeat, whose own are not counted; one that computes, or
# reads 1 MB a second, uses more within minutes.
_COMPUTED_S = 0.02


class StallDetector:
    """What was last heard of a job, and how much it has computed; `clock` as in `awake.py`."""

    def __init__(self, clock: Callable[[], float], processor_s: float = 0.0) -> None:
        self.clock = clock
        self.stage = "start"
        self.processor_s = self._counted_s = processor_s  # of the whole process, without its heartbeat
        self._said = self._computed = clock()

    @property
    def idle_s(self) -> float:
        """Seconds in which the job has neither computed nor said anything."""
        return self.clock() - self._computed

    def heard(self, report: Report) -> None:
        """Take note of any report of the worker."""
        now = self.clock()
        if isinstance(report, Heartbeat):
            self.processor_s = report.processor_s
            if self.processor_s - self._counted_s >= _COMPUTED_S:
                self._counted_s, self._computed = self.processor_s, now
        else:
            self._said = self._computed = now
            if isinstance(report, EventReport):
                self.stage = report.event.get("stage", self.stage)

    def complaint(self, idle_s: float, step_s: float) -> str:
        """Why the job counts as stuck; empty while it gets on.

        It is stuck after `idle_s` in which it has neither said nor computed anything, and after `step_s` without a word.
        """
        if self.idle_s > idle_s:
            waited = f"it has neither computed nor said anything for {self.idle_s:.0f} s, last in stage '{self.stage}'"
            return f"{waited}, as if a file or a network drive did not answer"
        silence_s = self.clock() - self._said
        if silence_s > step_s:
            return f"it computes and has not come further for {silence_s:.0f} s, last in stage '{self.stage}'"
        return ""


class CancelDeadline:
    """A job that was cancelled, and whether its worker should have stopped by now."""

    def __init__(self, stalls: StallDetector) -> None:
        self._stalls = stalls
        self._asked, self._processor_s = stalls.clock(), stalls.processor_s

    def complaint(self, grace_s: float) -> str:
        """Why the worker is to be killed; empty while it may still stop.

        It may go on for `grace_s` of processor time: a step of two seconds takes twenty on a machine that others use.
        """
        waited_s = self._stalls.clock() - self._asked
        computed_s = self._stalls.processor_s - self._processor_s
        if waited_s > grace_s and (computed_s > grace_s or self._stalls.idle_s > grace_s):
            return f"it did not stop within {waited_s:.0f} s of a cancel"
        return ""
