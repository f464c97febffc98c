"""What happens to jobs, written down: their states and events, in their order, also while the disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwa_daemon.control.full_disk import Move, Unwritten
from cwa_daemon.control.headlines import kept_headline
from cwa_daemon.control.job import Job
from cwa_daemon.control.states import MOVES
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import TERMINAL_STATES, JobState, StageProgress
from cwa_engine.base.errors import CopyPending, CwaError, StateDamaged, StateNotWritten
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.checksums import fingerprint_of

log = logging.getLogger(__name__)

OnEvent = Callable[[str, JsonMap], None]  # run id, an event of it that was stored
OnMove = Callable[[Job, JobState], None]  # a job as it was before, and the state that was written down


class Ledger:
    """The states and events of all jobs. What the disk does not take waits in memory, and `catch_up` writes it."""

    def __init__(
        self, store: Store, runs: Path, on_event: OnEvent, on_move: OnMove, queued_on: Callable[[Job], str]
    ) -> None:
        self.progress: dict[str, StageProgress] = {}  # of each job that runs
        self._store = store
        self._runs = runs  # where run folders are
        self._on_event = on_event
        self._on_move = on_move
        self._queued_on = queued_on  # the device of a job that is queued again
        self._unwritten = Unwritten()

    def state_of(self, run_id: str) -> JobState:
        """The state of a job, be it written down or not."""
        return self._unwritten.state_of(run_id) or self._job(run_id).state

    @property
    def unwritten(self) -> set[str]:
        """The jobs whose state in the database is not the one they have."""
        return self._unwritten.jobs

    def move(
        self,
        run_id: str,
        state: JobState,
        error: CwaError | None = None,
        at: float | None = None,
        device: str | None = None,
    ) -> None:
        """Bring a job into another state, once: the row and its event. A move that is not allowed is a defect.

        `at` is when that happened, seconds since the epoch, where it is heard of later: its worker has ended it then.
        `device` is the lane that a job has got, where it had none before.
        """
        move = Move(run_id, state, error, time.time() if at is None else at, device)
        try:
            job, before = self._job(run_id), self.state_of(run_id)
        except StateDamaged as trouble:
            log.error("%s is %s, which cannot be written down: %s", run_id, state, trouble.message)
            self._unwritten.moves.append(move)
            return
        if state not in MOVES[before]:
            raise RuntimeError(f"{run_id} cannot go from {before} to {state}")
        if run_id in self.unwritten:  # one after the other
            self._unwritten.moves.append(move)
            return
        try:
            self._store.update_job(run_id, **self._columns(job, move))
        except StateNotWritten as trouble:
            log.error("%s is %s, which cannot be written down yet: %s", run_id, state, trouble.message)
            self._unwritten.moves.append(move)
            return
        log.info("%s %s%s", run_id, state, f": {error.message}" if error else "")
        self.progress.pop(run_id, None)  # of the attempt that has ended, where one has
        self.record(run_id, self._event(job, move))
        self._on_move(job, state)

    def _columns(self, job: Job, move: Move) -> dict[str, Any]:
        columns: dict[str, Any] = {"state": move.state, "error": move.error.to_dict() if move.error else None}
        if move.device:
            columns["device"] = move.device
        elif move.state is JobState.QUEUED:  # any lane that may run it is to take it
            columns["device"] = self._queued_on(job)
        if move.state is JobState.RUNNING:
            columns["started"] = move.time
        elif job.state is JobState.RUNNING and job.started is not None:
            columns["worked_s"] = job.worked_s + max(0.0, move.time - job.started)
        if move.state in TERMINAL_STATES:
            columns["finished"] = move.time
        if move.state is JobState.DONE and job.kind == "run":
            columns["headline"] = kept_headline(self._runs / job.run_id)
        if move.state is JobState.DONE and job.output:  # in the same breath, so that no daemon forgets the copy
            columns["copy_error"] = _pending(job.run_id, job.output).to_dict()
        return columns

    def _event(self, job: Job, move: Move) -> JsonMap:
        event: JsonMap = {"kind": "state", "state": move.state, "error": move.error.to_dict() if move.error else None}
        if move.state in TERMINAL_STATES:
            event["time"] = move.time
        if move.state is JobState.DONE:
            event["fingerprint"] = fingerprint_of(self._runs / job.run_id)
            if job.output:
                event["output"] = job.spec["output"]
        return event

    def copied(self, run_id: str, error: CwaError | None) -> None:
        """The files of a run are in its output folder, or why they will not be."""
        body = error.to_dict() if error else None
        try:
            self._store.update_job(run_id, copy_error=body)
        except StateNotWritten:
            self._unwritten.copies[run_id] = error
            return
        log.info("%s", error.message if error else f"{run_id} is copied")
        self.record(run_id, {"kind": "copied", "folder": self._job(run_id).spec["output"], "error": body})

    def record(self, run_id: str, event: JsonMap) -> None:
        """Store an event of a job, then tell that it is there. On a full disk only what changes a state is kept.

        An event has happened at its `time`, seconds since the epoch, or where it has none, now.
        """
        event = {"time": time.time(), **event}
        if event["kind"] == "progress":
            self.progress[run_id] = StageProgress.of(event)
            if self._store.disk_full:
                self._store.version += 1
                return
        if self._unwritten.events:  # in their order, or not at all
            self._unwritten.events.append((run_id, event))
            return
        try:
            stored = self._store.append_event(run_id, event)
        except StateNotWritten as trouble:
            log.error("%s: an event waits for room: %s", run_id, trouble.message)
            self._unwritten.events.append((run_id, event))
            return
        self._on_event(run_id, stored)

    def note(self, run_id: str, text: str, level: str = "info") -> None:
        self.record(run_id, {"kind": "note", "text": text, "level": level})

    def catch_up(self) -> bool:
        """Try once more to write what waits; whether the state of any job was waiting."""
        waiting, self._unwritten = self._unwritten, Unwritten()
        for run_id, event in waiting.events:
            self.record(run_id, event)
        for move in waiting.moves:
            self.move(move.run_id, move.state, move.error, move.time, move.device)
        for run_id, error in waiting.copies.items():
            self.copied(run_id, error)
        return bool(waiting.moves)

    def _job(self, run_id: str) -> Job:
        job = self._store.job(run_id)
        assert job, run_id
        return job


def _pending(run_id: str, output: Path) -> CopyPending:
    """The `copy_error` of a run from its end until its files are copied."""
    return CopyPending(
        f"the files of {run_id} are not in {output} yet", hint=f"`cwtool jobs cancel {run_id}` gives the copy up"
    )
