"""A clock by which workers are judged: it stands still while this process does, and gives a grace once it goes on.

A laptop that sleeps, a frozen container and a SIGSTOP stop the daemon and its workers alike. When they go on, what a worker
has said is yet to be read, and it had no chance to say more. So time counts only as far as the daemon's own ticks show that
it ran: of the time between two ticks no more than `LONGEST_TICK_S`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LONGEST_TICK_S = 3.0  # the daemon ticks once a second; more than this between two ticks is a gap
GRACE_S = 10.0  # after a gap, in which no worker is judged


class AwakeClock:
    """Seconds in which this process ran. `tick` is called once a second."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last = now()
        self._counted = 0.0
        self._woke = -math.inf

    def tick(self) -> None:
        since = self._now() - self._last
        self._last += since
        self._counted += min(since, LONGEST_TICK_S)
        if since > LONGEST_TICK_S:
            self._woke = self._counted

    def __call__(self) -> float:
        return self._counted + min(self._now() - self._last, LONGEST_TICK_S)

    @property
    def has_just_woken(self) -> bool:
        """Whether this process went on only moments ago after it had stood still."""
        return self() - self._woke < GRACE_S
