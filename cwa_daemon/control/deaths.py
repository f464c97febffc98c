"""Which jobs run again by themselves after the process that computed them has died, and which do not.

A death counts as the job's own where its worker died by itself: of a signal that the processor or a library raised, for
want of memory, or because it hung. Somebody else's kill and the end of the daemon say nothing about the job.

    again      while no more than `retries` deaths were the job's own, and others are no more than MOST_DEATHS for each retry
    poison     never, once two deaths in the same stage were the job's own
    a stop     of the daemon never counts
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from cwa_engine.base.plain import JsonMap

START = "start"  # the stage of a worker that has not come to its job yet
MOST_BEGUN, MOST_DEATHS = 20, 100  # that a job may meet for each retry: once it had begun, and in all


class Cause(StrEnum):
    ITSELF = "itself"
    OTHERS = "others"  # a signal from outside, a daemon that died with its worker, a worker that could not be started
    STOP = "stop"  # of the daemon, which somebody asked for


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a worker under a job; `reason` is a sentence, `hint` the next step and the end of the worker's log."""

    reason: str
    cause: Cause
    hint: str = ""
    stage: str = START  # the last that was heard of
    time: float = field(default_factory=time.time)

    def of_job(self, reason: str, stage: str) -> Death:
        """This death as a job sees it, which had come to a stage."""
        return replace(self, reason=reason, stage=stage)

    def row(self) -> JsonMap:
        """What is kept of it with the job."""
        return {name: value for name, value in asdict(self).items() if name != "hint"}


def why_not_again(deaths: Sequence[JsonMap], retries: int) -> str | None:
    """Why a job with these deaths, the latest last, is not run again by itself; None where it is."""
    counted = [death for death in deaths if death["cause"] != Cause.STOP]
    own = [death["stage"] for death in counted if death["cause"] == Cause.ITSELF]
    begun = [death for death in counted if death["stage"] != START]
    if deaths[-1]["cause"] == Cause.ITSELF and own.count(own[-1]) > 1:
        return f"that was the second time in stage '{own[-1]}', so the job is not tried again"
    if len(own) > retries or len(begun) > MOST_BEGUN * retries or len(counted) > MOST_DEATHS * retries:
        return f"its worker has died {len(counted)} times, with --retries {retries}" if len(counted) > 1 else ""
    return None
