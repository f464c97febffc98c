"""What is known at home of runs on Ray: `ray/` in the state folder. Any process may read it, also while another one drives.

    keys/<key>            the id of the run that was begun under a key
    runs/<run id>.json    a run: its driver, its state, where its files are
    events/<run id>.jsonl what the run has said
    cancel/<run id>       somebody wants this run to end; its driver looks here
    drivers/<id>          held locked by a driver for life

A run that has not ended and whose driver holds no lock any more died with it: it is gone, and is asked for again.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from cwa_daemon.base import ofd_lock
from cwa_daemon.base.security import private_folder
from cwa_engine.base.errors import NotFound, StateNotWritten, error_from_dict
from cwa_engine.base.files import is_abandoned, scratch_path, write_whole
from cwa_engine.base.plain import JsonMap
from cwa_engine.runner import RunState, RunStateName

LOOK_S = 0.5  # between two looks at what another process writes
_NOT_WRITTEN = "make room on the disk of the state folder, and ask for the study again"


@dataclass(frozen=True, slots=True)
class Record:
    """A run that was asked for."""

    run_id: str
    driver: str
    created: float  # seconds since the epoch
    state: RunStateName = "queued"
    error: JsonMap | None = None
    place: str = ""  # of its files, a folder or an address; empty for a folder of its name among the runs at home
    fingerprint: str = ""  # sha256 of its SHA256SUMS, once it is done

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    def seen(self) -> RunState:
        return RunState(self.state, self.created, error_from_dict(self.error) if self.error else None)


@dataclass(frozen=True)
class Home:
    """The folder."""

    path: Path

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    # runs

    def write(self, record: Record) -> None:
        """Raises StateNotWritten."""
        path = self._file("runs", record.run_id, ".json")
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(record)).encode())

    def read(self, run_id: str) -> Record:
        """A run that is there: it has ended, or its driver lives. Raises NotFound."""
        try:
            record = Record(**json.loads(self._file("runs", run_id, ".json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            raise _no_run(run_id) from None
        if not record.ended and not self.drives(record.driver):
            raise _no_run(run_id)
        return record

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """One process looks a key up and writes it down at a time."""
        with _written(self.path):
            private_folder(self.path.parent)
            private_folder(self.path)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # events

    def append(self, run_id: str, *events: Mapping[str, object]) -> None:
        """Write down what a run has said. Raises StateNotWritten."""
        path = self._file("events", run_id, ".jsonl")
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def open_events(self, run_id: str) -> IO[bytes] | None:
        """What a run has said so far, a line of JSON each; None for nothing."""
        try:
            return self._file("events", run_id, ".jsonl").open("rb")
        except FileNotFoundError:
            return None

    # cancelling from another process

    def ask_to_cancel(self, run_id: str) -> None:
        path = self._file("cancel", run_id)
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def asked_to_cancel(self) -> list[str]:
        try:
            return [path.name for path in (self.path / "cancel").iterdir()]
        except FileNotFoundError:
            return []

    def forget_cancel(self, run_id: str) -> None:
        self._file("cancel", run_id).unlink(missing_ok=True)

    # drivers

    def new_driver(self) -> Driver:
        """Raises StateNotWritten."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        path = self._file("drivers", name)
        with _written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratch_path(path)
            file = scratch.open("xb")
            ofd_lock.take(file)  # before it has its name, so that nobody sees it unlocked
            scratch.rename(path)
        for other in path.parent.iterdir():
            if is_abandoned(other) or not (other.name.startswith(".") or self.drives(other.name)):
                other.unlink(missing_ok=True)
        return Driver(name, path, file)

    def drives(self, driver: str) -> bool:
        """Whether a driver lives."""
        try:
            file = (self.path / "drivers" / driver).open("rb")
        except OSError:
            return False
        with file:
            return ofd_lock.is_taken(file)

    def _file(self, kind: str, run_id: str, suffix: str = "") -> Path:
        if not run_id or "/" in run_id or run_id.startswith("."):
            raise _no_run(run_id)
        return self.path / kind / f"{run_id}{suffix}"


@dataclass(frozen=True)
class Driver:
    """The process that gives runs to actors. `release` tells that it has ended."""

    name: str
    path: Path
    file: IO[bytes]

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self.file.close()


class OwnRuns:
    """The runs of this driver: what it writes of them is known to its threads at once."""

    def __init__(self, home: Home, driver: Driver) -> None:
        self.home, self.driver = home, driver
        self.changed = threading.Condition()
        self._records: dict[str, Record] = {}  # guarded by `changed`

    def begin(self, run_id: str) -> Record:
        return self._keep(Record(run_id, self.driver.name, time.time()))

    def get(self, run_id: str) -> Record | None:
        with self.changed:
            return self._records.get(run_id)

    def move(self, run_id: str, state: RunStateName, **fields: object) -> None:
        """A run is in another state now; one that has ended stays as it is."""
        record = self.get(run_id)
        assert record is not None
        if not record.ended:
            self._keep(replace(record, state=state, **fields))  # type: ignore[arg-type]

    def say(self, run_id: str, *events: Mapping[str, object]) -> None:
        self.home.append(run_id, *events)
        with self.changed:
            self.changed.notify_all()

    def unfinished(self) -> list[Record]:
        with self.changed:
            return [record for record in self._records.values() if not record.ended]

    def _keep(self, record: Record) -> Record:
        self.home.write(record)
        with self.changed:
            self._records[record.run_id] = record
            self.changed.notify_all()
        return record


def _no_run(run_id: str) -> NotFound:
    return NotFound(
        f"there is no run {run_id:.200} here", hint="it died with the process that drove it, or its files were removed"
    )


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateNotWritten(f"{path} cannot be written: {error.strerror}", hint=_NOT_WRITTEN) from error
