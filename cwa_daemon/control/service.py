"""What requests are answered from: the jobs, the store, the followers and the texts of one daemon."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque

from cwa_daemon.base.in_force import in_force
from cwa_daemon.base.settings import Settings
from cwa_daemon.control import telemetry
from cwa_daemon.control.found_runs import FoundRuns
from cwa_daemon.control.jobs import Jobs
from cwa_daemon.control.store import Store
from cwa_daemon.control.subscriptions import Send, Subscriptions
from cwa_daemon.control.supervise import Troubles
from cwa_daemon.control.texts import KeptTexts
from cwa_daemon.protocol import Sample

HISTORY = 300  # samples of telemetry, one a second


class Service:
    """The parts of a daemon that stand behind its doors. `send` reaches a client, as `Subscriptions` wants it."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self.settings = settings
        self.in_force = in_force(settings)
        self.started = time.time()
        self.store = Store(settings.database)
        self.subscriptions = Subscriptions(self.store, send, asyncio.get_running_loop())
        self.troubles = Troubles()
        self.jobs = Jobs(self.store, settings, self.subscriptions.on_event, self.troubles)
        self.texts = KeptTexts(settings.texts, settings.texts_bytes, self.store.data_files)
        self.found_runs = FoundRuns(self.store, settings.runs)
        self.samples: deque[Sample] = deque(maxlen=HISTORY)
        self.stopping = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None  # until what runs has ended

    def sample(self) -> Sample:
        """What devices and the daemon's processes use now."""
        return telemetry.sample([os.getpid(), *self.jobs.dispatcher.worker_pids()])

    def latest_sample(self) -> Sample:
        """The last one that was taken, which is done each second: taking one costs more than the rest of a status."""
        return self.samples[-1] if self.samples else self.sample()

    def samples_after(self, moment: float) -> list[Sample]:
        """Those kept that are later, seconds since the epoch; all of them where the clock was put back before it."""
        if self.samples and self.samples[-1].time < moment:
            return list(self.samples)
        return [sample for sample in self.samples if sample.time > moment]

    def stop_when_idle(self) -> None:
        """Begin no more jobs, and stop when those that run have ended."""
        self._draining = asyncio.get_running_loop().create_task(self.jobs.dispatcher.drain())
        self._draining.add_done_callback(lambda _: self.stopping.set())

    async def close(self) -> None:
        """End workers and copies."""
        await self.jobs.stop()
