"""The database file: its schema, full disks, damage, and what is done where the file goes away."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import CwaError, DaemonNotStartable, StateDamaged, StateNotWritten
from cwa_engine.base.files import scratch_path

log = logging.getLogger(__name__)

# What brings a database from each version to the next; a released script is never changed again.
_MIGRATIONS = (
    """
CREATE TABLE jobs (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id     TEXT NOT NULL UNIQUE,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL,
    spec       TEXT NOT NULL,
    command    TEXT NOT NULL,
    device     TEXT NOT NULL,
    client_key TEXT NOT NULL UNIQUE,
    retry_of   TEXT,
    created    REAL NOT NULL,
    started    REAL,
    finished   REAL,
    error      TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, device, number);
CREATE TABLE events (
    run_id TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    time   REAL NOT NULL,
    body   TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
) WITHOUT ROWID;
""",
    """
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN after_run TEXT;
ALTER TABLE jobs ADD COLUMN passed_over INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN options TEXT NOT NULL DEFAULT '{}';
CREATE INDEX jobs_by_predecessor ON jobs (after_run) WHERE after_run IS NOT NULL;
""",
    """
ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN deaths TEXT NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN copy_error TEXT;
""",
    # What jobs are found by is generated, so it is never another than the job's. A damaged row has none, and is named later.
    """
ALTER TABLE jobs ADD COLUMN worked_s REAL NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN headline TEXT;
ALTER TABLE jobs ADD COLUMN model TEXT GENERATED ALWAYS AS
    (CASE WHEN json_valid(spec) THEN spec ->> 'model' ELSE '' END) VIRTUAL;
ALTER TABLE jobs ADD COLUMN searched TEXT GENERATED ALWAYS AS (lower(
    run_id || ' ' || state
    || ' ' || CASE WHEN json_valid(spec) THEN coalesce(spec ->> 'model', '') || coalesce(spec ->> 'metrics', '') ELSE '' END
    || ' ' || CASE WHEN json_valid(error) THEN coalesce(error ->> 'message', '') ELSE '' END)) VIRTUAL;
UPDATE jobs SET worked_s = max(0, finished - started) WHERE finished IS NOT NULL AND started IS NOT NULL;
CREATE INDEX jobs_by_kind ON jobs (kind, state);
CREATE INDEX jobs_by_text ON jobs (searched);
""",
    """
ALTER TABLE jobs ADD COLUMN tags TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN note TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN words TEXT GENERATED ALWAYS AS (searched || ' ' || lower(tags || ' ' || note)) VIRTUAL;
DROP INDEX jobs_by_text;
CREATE INDEX jobs_by_words ON jobs (words);
CREATE INDEX jobs_with_marks ON jobs (run_id) WHERE tags != '' OR note != '';
""",
)
SCHEMA_VERSION = len(_MIGRATIONS)
BALLAST_BYTES = 4 * 2**20  # given up when the disk is full, so that what happens can still be written down
_DISK_HINT = "make room on the disk of the state folder; `cwtool doctor` tells how full it is"
_DAMAGE_HINT = (
    "`cwtool daemon stop`, then `cwtool doctor --repair`: it sets the database aside and finds your runs again"
)


class Database:
    """One connection to the database file, which is made where there is none, and brought up to date.

    `trouble` says what is wrong with the file, since it was first met; empty for a sound one. `version` grows with every
    change, and is larger than it ever was before this start.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._ballast = database.with_name("ballast")
        self.disk_full = False
        self.trouble = ""
        self.version = time.time_ns() // 1000
        database.touch(mode=0o600)  # its journal takes the same mode
        try:
            self._db = _connected(database)
            self._bring_up_to_date(database)
        except sqlite3.OperationalError as error:
            raise DaemonNotStartable(
                f"the job database {database} cannot be opened: {error}",
                hint="another program may hold it, or the disk may be full; `cwtool doctor` looks",
            ) from error
        except sqlite3.DatabaseError as error:
            raise DaemonNotStartable(
                f"the job database {database} is damaged: {error}",
                hint="`cwtool doctor --repair` sets it aside and finds your finished runs again",
            ) from error
        self._inode = database.stat().st_ino
        self.restore_ballast()

    def _bring_up_to_date(self, database: Path) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise newer_schema(database, version)
        for step, script in enumerate(_MIGRATIONS[version:], start=version + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version = {step}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    def restore_ballast(self) -> None:
        """Lay by some disk space, where there is space again."""
        if self._ballast.exists() and not self.disk_full:
            return
        try:
            self._ballast.write_bytes(bytes(BALLAST_BYTES))
            self.disk_full = False
        except OSError:
            self._ballast.unlink(missing_ok=True)
            self.disk_full = True

    def _write(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Execute what changes the database, on a full disk with the ballast's room. Raises StateNotWritten."""
        self.version += 1
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if not _is_full(error):
                raise self._named(error) from error
        self.disk_full = True
        self._ballast.unlink(missing_ok=True)
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._named(error) from error

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows that a statement gives. Raises StateDamaged."""
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._named(error) from error

    def _named(self, error: sqlite3.DatabaseError) -> CwaError:
        if isinstance(error, sqlite3.OperationalError) and not _is_unreadable(error):
            what = "written" if _is_full(error) else "used"
            return StateNotWritten(f"the job database cannot be {what}: {error}", hint=_DISK_HINT)
        return self._damaged(str(error))

    def _damaged(self, why: str) -> StateDamaged:
        damaged = StateDamaged(f"the job database {self._database} is damaged: {why}", hint=_DAMAGE_HINT)
        self.trouble = f"{damaged.message}; {damaged.hint}"
        return damaged

    def look_after(self) -> None:
        """Once a second: write the database anew where its file was deleted, for what is written would be lost with it.

        Where another file is in its place, that is a trouble. Raises OSError.
        """
        try:
            if self._database.stat().st_ino != self._inode:
                self._damaged("its file was replaced while it was in use")
        except FileNotFoundError:
            self._write_anew()

    def _write_anew(self) -> None:
        """All that the deleted file holds, which is there for as long as it is open, under its name again."""
        log.warning("%s was deleted while it was in use: it is written anew", self._database)
        scratch = scratch_path(self._database)
        try:
            self._db.execute("VACUUM INTO ?", [str(scratch)])
            scratch.chmod(0o600)
            self._db.close()
            for ending in ("-wal", "-shm"):  # of the file that is gone
                self._database.with_name(f"{self._database.name}{ending}").unlink(missing_ok=True)
            scratch.replace(self._database)
        except sqlite3.DatabaseError as error:
            raise self._named(error) from error
        finally:
            scratch.unlink(missing_ok=True)
        self._db = _connected(self._database)
        self._inode = self._database.stat().st_ino


def newer_schema(database: Path, version: int) -> DaemonNotStartable:
    """Why a database of a later schema is not used."""
    return DaemonNotStartable(
        f"{database} was written by a newer version of cwtool (schema {version}, here {SCHEMA_VERSION})",
        hint="use that version, or set CWTOOL_HOME to another folder",
    )


def _connected(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    # A killed process loses nothing, a power cut at most a moment, and no job: see `add_job`.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA busy_timeout = 5000")  # milliseconds; somebody may look with sqlite3
    return connection


def _is_full(error: sqlite3.DatabaseError) -> bool:
    return error.sqlite_errorname in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR")


def _is_unreadable(error: sqlite3.OperationalError) -> bool:
    """What a damaged file also raises: a table that its damaged first page does not list, a read beyond its end."""
    return error.sqlite_errorname in ("SQLITE_ERROR", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_READ")
