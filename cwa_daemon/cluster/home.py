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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from cwa_daemon.base import ofd_lock
from cwa_daemon.base.security import private_folder
from cwa_engine.base.errors import NotFound, StateNotWritten, error_from_dict
from cwa_engine.base.events import Note, to_dict
from cwa_engine.base.files import scratch_path, write_whole
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
        with written(path):
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

    def has(self, run_id: str) -> bool:
        """Whether a run was ever asked for."""
        return self._file("runs", run_id, ".json").exists()

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """One process looks a key up and writes it down at a time."""
        with written(self.path):
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
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as file:
                size = file.seek(0, os.SEEK_END)
                torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"  # by a disk that was full
                file.write(b"\n" * bool(torn) + b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def events_from(self, run_id: str, position: int) -> bytes:
        """What a run has said, lines of JSON, beyond so many bytes."""
        try:
            with self._file("events", run_id, ".jsonl").open("rb") as file:
                file.seek(position)
                return file.read()
        except FileNotFoundError:
            return b""

    # cancelling from another process

    def ask_to_cancel(self, run_id: str) -> None:
        path = self._file("cancel", run_id)
        with written(path):
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
        """Inside `one_at_a_time`. Raises StateNotWritten."""
        name = f"{os.getpid()}-{secrets.token_hex(8)}"
        path = self._file("drivers", name)
        with written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = scratch_path(path)
            file = scratch.open("xb")
            ofd_lock.take(file)  # before it has its name, so that nobody sees it unlocked
            scratch.rename(path)
        for other in path.parent.iterdir():  # no other driver begins at the same time, see `one_at_a_time`
            if not self.drives(other.name):
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
    """The runs of this driver: what it says of them is known to its threads at once.

    Where the disk does not take it, runs go on, and `say_so` hears of that once.
    """

    def __init__(self, home: Home, driver: Driver, say_so: Callable[[str], None]) -> None:
        self.home, self.driver = home, driver
        self.changed = threading.Condition()
        self._say_so = say_so
        self._records: dict[str, Record] = {}  # guarded, as all below, by `changed`
        self._said = False

    def begin(self, run_id: str) -> None:
        """Write a run down, before anything is done. Raises StateNotWritten."""
        record = Record(run_id, self.driver.name, time.time())
        self.home.write(record)
        with self.changed:
            self._records[run_id] = record

    def get(self, run_id: str) -> Record | None:
        with self.changed:
            return self._records.get(run_id)

    def move(self, run_id: str, state: RunStateName, **fields: Any) -> None:
        """A run is in another state now; one that has ended stays as it is."""
        with self.changed:
            if self._records[run_id].ended:
                return
            record = self._records[run_id] = replace(self._records[run_id], state=state, **fields)
            self._try(lambda: self.home.write(record))
            self.changed.notify_all()

    def say(self, run_id: str, *events: Mapping[str, object]) -> None:
        with self.changed:
            self._try(lambda: self.home.append(run_id, *events))
            self.changed.notify_all()

    def note(self, run_id: str, text: str, level: str = "info") -> None:
        """Say something of a run that its actor does not know."""
        self.say(run_id, to_dict(Note(text, level)) | {"time": time.time()})

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except StateNotWritten as error:
            if not self._said:
                self._said = True
                self._say_so(f"{error.message}: runs go on, and what they say is lost")


def _no_run(run_id: str) -> NotFound:
    return NotFound(
        f"there is no run {run_id:.200} here", hint="it died with the process that drove it, or its files were removed"
    )


@contextmanager
def written(path: Path) -> Iterator[None]:
    """What is done to a path at home. Raises StateNotWritten where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise StateNotWritten(f"{path} cannot be written: {error.strerror}", hint=_NOT_WRITTEN) from error
