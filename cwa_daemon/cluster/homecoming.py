"""A run counts as done once its files are compared, and are whole at home or seen in the store. Knows nothing of Ray."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from cwa_daemon.cluster.board import Board, Queued
from cwa_daemon.cluster.bringing import link_home, report_of_files, write_home
from cwa_daemon.cluster.carried import SameModels
from cwa_daemon.cluster.home import LOOK_S, OwnRuns
from cwa_daemon.cluster.messages import RunFiles
from cwa_daemon.cluster.store import folder_of, holds
from cwa_engine.base.errors import Cancelled, OutputError

# For what a node has written to a shared folder to be seen here: network drives remember for some seconds.
SEEN_S = 20.0
WRITE_AGAIN_S = 2.0  # between two attempts to write what the disk at home did not take


@dataclass(frozen=True)
class Homecoming:
    """The way of a driver's runs into `runs`, the folder of run folders. Its methods may be called by any thread."""

    own: OwnRuns
    runs: Path
    board: Board
    models: SameModels = field(default_factory=SameModels)

    def bring(self, run: Queued, brought: RunFiles | None, host: str, away: bool) -> None:
        """Keep the files of a run that is done, and say that it is.

        Raises Altered where they are not whole, ModelBroken where the node has another model, OutputError where the store of
        the node is not the one of this machine, and Cancelled.
        """
        self.models.compare(report_of_files(run.run_id, brought), host, away)
        assert brought
        if brought.place:
            self._check_seen(brought, host)
            self._link(brought)
        else:
            self._write(run, brought)
        self.own.move(run.run_id, "done", fingerprint=brought.fingerprint, place=brought.place)

    def _write(self, run: Queued, brought: RunFiles) -> None:
        """Where the disk does not take them, try again until the run is cancelled."""
        said = ""
        while True:
            try:
                write_home(self.runs, brought)
                return
            except OutputError as error:
                if error.message != said:
                    kept = f"{error.message}; the result is kept, and saved when that is mended; a cancel discards it"
                    self.own.note(run.run_id, kept, "warning")
                said = error.message
            self.board.pause(WRITE_AGAIN_S)
            if run.cancelled or self.board.closed:
                raise Cancelled("cancelled while its result could not be saved; the result is discarded")

    def _check_seen(self, brought: RunFiles, host: str) -> None:
        """Raise OutputError where this machine does not see what a node has brought to the store."""
        until = time.monotonic() + SEEN_S
        while not holds(brought.place, brought.fingerprint):
            if time.monotonic() > until or self.board.closed:
                raise OutputError(
                    f"{host} has written {brought.place}, and this machine does not see it there",
                    hint="the store must be the same folder or address there and here, and readable from both",
                )
            self.board.pause(LOOK_S)

    def _link(self, brought: RunFiles) -> None:
        """Let the daemon list a run that stays in a shared folder."""
        if shared := folder_of(brought.place):
            try:
                link_home(self.runs, shared)
            except OSError as error:
                self.own.note(brought.run_id, f"it is not listed among the runs at home: {error}", "warning")
