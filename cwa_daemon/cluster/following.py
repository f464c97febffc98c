"""What an actor says of a run, as it comes, and whether it gets on: it is judged as the daemon judges its worker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from cwa_daemon.base.settings import Settings
from cwa_daemon.cluster.board import Queued
from cwa_daemon.cluster.home import LOOK_S
from cwa_daemon.cluster.messages import RunFiles
from cwa_daemon.control.awake import AwakeClock
from cwa_daemon.control.stalls import CancelDeadline, StallDetector
from cwa_daemon.pipe.messages import Report, report_reader


class Stuck(Exception):
    """An actor is to be ended: it hangs, or does not stop when its run is cancelled. The message says which."""


def follow(ray: Any, actor: Any, said: Any, run: Queued, patience: Settings) -> Iterator[Report | RunFiles]:
    """The reports of a run out of a generator of Ray's, and its files. When it is cancelled, the actor is told.

    Raises Stuck, and RayError where the actor is gone.
    """
    clock = AwakeClock(time.monotonic)
    stalls, heard = StallDetector(clock), clock()
    deadline: CancelDeadline | None = None
    while True:
        clock.tick()
        if run.cancelled and deadline is None:
            actor.cancel.options(concurrency_group="control").remote(run.run_id)
            deadline = CancelDeadline(stalls)
        # Not fetched while it waits: files that come slowly are no silence, and `get` takes the time that they take.
        if ray.wait([said], timeout=LOOK_S, fetch_local=False)[0]:
            try:
                message = ray.get(next(said))
            except StopIteration:
                return
            heard = clock()
            if isinstance(message, RunFiles):
                yield message
                continue
            for report in report_reader().feed(message):
                stalls.heard(report)
                yield report
        if clock.has_just_woken:
            continue
        if deadline and (why := deadline.complaint(patience.cancel_grace_s)):
            raise Stuck(why)
        if clock() - heard > patience.worker_silence_s:
            raise Stuck(f"it hung, nothing was heard of it for {clock() - heard:.0f} s")
        if why := stalls.complaint(patience.stage_idle_s, patience.stage_step_s):
            raise Stuck(why)
