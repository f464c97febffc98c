"""Runs on Ray as they are known at home: of this process or another one, under way or long done. Needs no Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cwa_daemon.cluster import store
from cwa_daemon.cluster.bringing import write_home
from cwa_daemon.cluster.home import LOOK_S, Home, OwnRuns, Record, written
from cwa_daemon.cluster.messages import RunFiles
from cwa_engine.base.errors import NotFound, error_from_dict
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Event
from cwa_engine.records.run_report import RunReport
from cwa_engine.run_folders import FinishedRun, RunFolders
from cwa_engine.runner import RunState


@dataclass
class KnownRuns:
    """What is written at home, and what this process knows of those that it drives."""

    home: Home
    folders: RunFolders
    own: OwnRuns | None = None
    cancel: Callable[[str], None] | None = None  # a run of this process
    _never: threading.Event = field(default_factory=threading.Event)

    def record(self, run_id: str) -> Record:
        """Raises NotFound for what is not there, and for what was lost with its driver."""
        record = self._record(run_id)
        if record.ended and record.state == "done" and not record.place and not self.folders.folder(run_id):
            raise NotFound(f"the files of {run_id} are gone", hint="`cwtool study resume` runs it again")
        return record

    def _record(self, run_id: str) -> Record:
        if self.drives(run_id):
            assert self.own
            return self.own.get(run_id) or self.home.read(run_id)
        try:
            return self.home.read(run_id)
        except NotFound:
            # Its folder came home, and its driver was killed before it wrote that down.
            if not (self.home.has(run_id) and self.folders.folder(run_id)):
                raise
            return Record(run_id, "", self.folders.finished(run_id).state().created, "done")

    def keep_key(self, key: str, run_id: str) -> None:
        """Write down which run was begun under a key. Raises StateNotWritten."""
        with written(self.home.keys / key):
            self.folders.keep_key(key, run_id)

    def drives(self, run_id: str) -> bool:
        """Whether it is a run of this process that is under way, or has ended while this process drove."""
        return bool(self.own and self.own.get(run_id))

    def is_under_way(self, run_id: str) -> bool:
        try:
            return not self.record(run_id).ended
        except NotFound:
            return False

    def wait(self, run_id: str) -> None:
        """Until something may have changed: at once where this process drives, else a moment, for files tell nobody."""
        if self.own and self.drives(run_id):
            with self.own.changed:
                self.own.changed.wait(LOOK_S)
        else:
            self._never.wait(LOOK_S)


@dataclass(frozen=True)
class RayRun:
    """A run that was asked for: a handle, as `runner.RunHandle`."""

    known: KnownRuns
    run_id: str

    def events(self) -> Iterator[Event]:
        for line in self._lines():
            try:
                said = json.loads(line)
            except ValueError:  # a full disk took a part of it
                continue
            if event := event_from_plain(said):
                yield event

    def _lines(self) -> Iterator[bytes]:
        """What was written of it, as it comes, until it has ended."""
        position, torn = 0, b""
        while True:
            over = not self.known.is_under_way(self.run_id)  # before the last look
            said = self.known.home.events_from(self.run_id, position)
            position += len(said)
            *whole, torn = (torn + said).split(b"\n")
            yield from whole
            if over:
                return
            if not whole:
                self.known.wait(self.run_id)

    def state(self) -> RunState:
        return self.known.record(self.run_id).seen()

    def report(self) -> RunReport:
        while self.known.is_under_way(self.run_id):
            self.known.wait(self.run_id)
        record = self.known.record(self.run_id)
        if record.error:
            raise error_from_dict(record.error)
        return self._finished(record).report()

    def altered(self) -> tuple[str, ...]:
        return self._finished(self.known.record(self.run_id)).altered()

    def cancel(self) -> None:
        if not self.known.is_under_way(self.run_id):
            return
        if self.known.drives(self.run_id) and self.known.cancel:
            self.known.cancel(self.run_id)
        else:
            self.known.home.ask_to_cancel(self.run_id)

    def _finished(self, record: Record) -> FinishedRun:
        """The folder of a run that is done, fetched where it is in a store that is no folder."""
        return FinishedRun(self._folder(record), record.fingerprint or None)

    def _folder(self, record: Record) -> Path:
        at_home = self.known.folders.path / self.run_id
        if not record.place:
            return at_home
        if shared := store.folder_of(record.place):
            return shared
        if not at_home.is_dir():
            write_home(at_home.parent, RunFiles(self.run_id, store.fetch_files(record.place), record.fingerprint))
        return at_home
