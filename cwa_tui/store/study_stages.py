"""How far the runs of a runner are that tells it by events alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cwa_engine.base.errors import CwaError
from cwa_engine.base.events import Progress
from cwa_engine.runner import Runner
from cwa_tui.tables.study import Stage

StageOf = Callable[[str], Stage | None]  # of a run id


class StagesFollowed:
    """The last stage of each run that was asked for. Events are waited for, so each run is followed by a thread of its own."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._latest: dict[str, Progress | None] = {}

    def __call__(self, run_id: str) -> Stage | None:
        if run_id not in self._latest:
            self._latest[run_id] = None
            threading.Thread(target=self._follow, args=[run_id], daemon=True, name=f"follow {run_id}").start()
        return self._latest[run_id]

    def _follow(self, run_id: str) -> None:
        try:
            for event in self._runner.attach(run_id).events():
                if isinstance(event, Progress):
                    self._latest[run_id] = event
        except CwaError:  # it is gone: its state says so
            self._latest[run_id] = None
