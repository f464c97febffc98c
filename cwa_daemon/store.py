"""SQLite: jobs and their events. What is appended here is what happened; everything else is derived from it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwa_daemon.queue import PLANS
from cwa_engine.errors import CopyPending, DaemonNotStartable, StateNotWritten

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
)
SCHEMA_VERSION = len(_MIGRATIONS)
_LANE = f"CASE kind WHEN 'plan' THEN '{PLANS}' ELSE device END"  # as `queue.lane_of`
_TO_BE_COPIED = f"(copy_error ->> 'code' = '{CopyPending.code}')"
BALLAST_BYTES = 4 * 2**20  # given up when the disk is full, so that what happens can still be written down


class Store:
    """One connection, used by the control process's only thread. Each call is a transaction of well under 1 ms."""

    def __init__(self, database: Path) -> None:
        self._ballast = database.with_name("ballast")
        self.disk_full = False
        database.touch(mode=0o600)  # its journal takes the same mode
        try:
            self._db = sqlite3.connect(database, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing, a power cut at most a moment, and no job: see `add_job`.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA busy_timeout = 5000")  # milliseconds; somebody may look with sqlite3
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
        self.restore_ballast()

    def _bring_up_to_date(self, database: Path) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise DaemonNotStartable(
                f"{database} was written by a newer version of cwtool (schema {version}, here {SCHEMA_VERSION})",
                hint="use that version, or set CWTOOL_HOME to another folder",
            )
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
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if not _is_full(error):
                raise StateNotWritten(f"the job database cannot be written: {error}", hint=_DISK_HINT) from error
        self.disk_full = True
        self._ballast.unlink(missing_ok=True)
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            raise StateNotWritten(f"the job database cannot be written: {error}", hint=_DISK_HINT) from error

    # jobs

    def add_job(self, **columns: Any) -> None:
        """Store a job. It is on the disk when this returns: who is told that a job is queued finds it after a power cut."""
        names = ", ".join(columns)
        places = ", ".join("?" for _ in columns)
        self._db.execute("PRAGMA synchronous = FULL")
        try:
            self._write(f"INSERT INTO jobs ({names}) VALUES ({places})", [_column(v) for v in columns.values()])
        finally:
            self._db.execute("PRAGMA synchronous = NORMAL")

    def update_job(self, run_id: str, **columns: Any) -> None:
        assignments = ", ".join(f"{name} = ?" for name in columns)
        values = [_column(value) for value in columns.values()]
        self._write(f"UPDATE jobs SET {assignments} WHERE run_id = ?", [*values, run_id])

    def job(self, run_id: str) -> dict[str, Any] | None:
        return _job(self._db.execute("SELECT * FROM jobs WHERE run_id = ?", [run_id]).fetchone())

    def job_by_client_key(self, client_key: str) -> dict[str, Any] | None:
        return _job(self._db.execute("SELECT * FROM jobs WHERE client_key = ?", [client_key]).fetchone())

    def jobs_like(self, part: str) -> list[dict[str, Any]]:
        """Jobs whose run id begins or ends with `part`, latest first."""
        escaped = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE run_id LIKE ? ESCAPE '\\' OR run_id LIKE ? ESCAPE '\\'"
            " ORDER BY number DESC LIMIT 20",
            [f"{escaped}%", f"%{escaped}"],
        )
        return [job for row in rows if (job := _job(row))]

    def jobs(
        self,
        limit: int = 50,
        state: str | None = None,
        kind: str | None = None,
        model: str | None = None,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """The latest jobs, latest first, after the first `offset`; `model` is a part of the model's name."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR kind = ?2)"
            " AND (?3 IS NULL OR instr(lower(spec ->> 'model'), lower(?3)) > 0)"
            " ORDER BY number DESC LIMIT ?4 OFFSET ?5",
            [state, kind, model, limit, offset],
        )
        return [job for row in rows if (job := _job(row))]

    def runnable(self, lane: str, limit: int = 100) -> list[dict[str, Any]]:
        """Queued jobs of a lane that wait for no other job, in the order they are due."""
        rows = self._db.execute(
            f"SELECT * FROM jobs WHERE state = 'queued' AND {_LANE} = ? AND (after_run IS NULL OR EXISTS"
            " (SELECT 1 FROM jobs AS before WHERE before.run_id = jobs.after_run AND before.state = 'done'))"
            " ORDER BY priority DESC, number LIMIT ?",
            [lane, limit],
        )
        return [job for row in rows if (job := _job(row))]

    def waiting_for(self, run_id: str) -> list[dict[str, Any]]:
        """Jobs that are to begin when this one is done."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE after_run = ? AND state IN ('queued', 'paused') ORDER BY number", [run_id]
        )
        return [job for row in rows if (job := _job(row))]

    def ended_before(self, moment: float) -> list[dict[str, Any]]:
        """Jobs that ended before `moment`, seconds since the epoch, and are not being copied; oldest first."""
        rows = self._db.execute(
            f"SELECT * FROM jobs WHERE finished < ? AND {_TO_BE_COPIED} IS NOT TRUE ORDER BY number", [moment]
        )
        return [job for row in rows if (job := _job(row))]

    def data_files(self) -> list[str]:
        """The files of texts that jobs use."""
        rows = self._db.execute("SELECT DISTINCT spec ->> 'data_file' AS file FROM jobs WHERE file IS NOT NULL")
        return [row["file"] for row in rows]

    def unfinished_with_output(self, folder: str) -> list[dict[str, Any]]:
        """Jobs that are to write their files to a folder."""
        rows = self._db.execute(
            f"SELECT * FROM jobs WHERE (state IN ('queued', 'paused', 'running') OR {_TO_BE_COPIED})"
            " AND spec ->> 'output' = ?",
            [folder],
        )
        return [job for row in rows if (job := _job(row))]

    def to_be_copied(self) -> list[dict[str, Any]]:
        """Runs that are done, and whose files are not in their output folder yet; those that ended first come first."""
        rows = self._db.execute(f"SELECT * FROM jobs WHERE {_TO_BE_COPIED} ORDER BY finished")
        return [job for row in rows if (job := _job(row))]

    def first_number(self) -> int:
        """The number of the job that counts as the oldest; numbers give the order, for clocks may be put back."""
        return int(self._db.execute("SELECT coalesce(min(number), 1) FROM jobs").fetchone()[0])

    def remove_job(self, run_id: str) -> None:
        self._write("DELETE FROM jobs WHERE run_id = ?", [run_id])

    def remove_events(self, run_id: str, but_the_end: bool = False) -> int:
        """Forget what a job has said, if asked but for how it ended; gives how many events that were."""
        state = "SELECT max(seq) FROM events WHERE run_id = ?1 AND body ->> 'kind' = 'state'"
        before = f"coalesce(({state}), 0)" if but_the_end else str(2**62)
        return len(self._write(f"DELETE FROM events WHERE run_id = ?1 AND seq < {before} RETURNING 1", [run_id]))

    def lanes_with_queued_jobs(self) -> list[str]:
        return [row[0] for row in self._db.execute(f"SELECT DISTINCT {_LANE} FROM jobs WHERE state = 'queued'")]

    def count(self, state: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM jobs WHERE state = ?", [state]).fetchone()[0])

    # events

    def append_event(self, run_id: str, event: dict[str, Any]) -> dict[str, Any]:
        """Store an event under the next number of its job, the first being 1; gives it as `events` will."""
        now = time.time()
        rows = self._write(
            "INSERT INTO events SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3 FROM events WHERE run_id = ?1 RETURNING seq",
            [run_id, now, json.dumps(event, allow_nan=False)],
        )
        return {"seq": rows[0][0], "time": now, **event}

    def events(self, run_id: str, after_seq: int, limit: int) -> list[dict[str, Any]]:
        """The next `limit` events after number `after_seq`, in order."""
        rows = self._db.execute(
            "SELECT seq, time, body FROM events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            [run_id, after_seq, limit],
        )
        return [{"seq": row["seq"], "time": row["time"], **_event(row["body"])} for row in rows]

    def last_stage(self, run_id: str) -> str | None:
        """The stage of a job that was last heard of since its state changed."""
        state = "SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?1 AND body ->> 'kind' = 'state'"
        row = self._db.execute(
            f"SELECT body ->> 'stage' FROM events WHERE run_id = ?1 AND seq > ({state})"
            " AND body ->> 'stage' IS NOT NULL ORDER BY seq DESC LIMIT 1",
            [run_id],
        ).fetchone()
        return row and str(row[0])

    def last_number(self, run_id: str) -> int:
        """The highest `number` that a worker gave to an event of a job since its state changed last; 0 without any."""
        state = "SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?1 AND body ->> 'kind' = 'state'"
        rows = f"SELECT coalesce(max(body ->> 'number'), 0) FROM events WHERE run_id = ?1 AND seq > ({state})"
        return int(self._db.execute(rows, [run_id]).fetchone()[0])

    def last_seq(self, run_id: str) -> int:
        row = self._db.execute("SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?", [run_id]).fetchone()
        return int(row[0])


_DISK_HINT = "make room on the disk of the state folder; `cwtool doctor` tells how full it is"


def _is_full(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorname in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR")


def _event(body: str) -> dict[str, Any]:
    """An event as it was recorded, without the number that its worker gave it."""
    event: dict[str, Any] = json.loads(body)
    event.pop("number", None)
    return event


def _column(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, (dict, list)) else value


def _job(row: sqlite3.Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    job = dict(row)
    job["spec"] = json.loads(job["spec"])
    job["options"] = json.loads(job["options"])
    job["deaths"] = json.loads(job["deaths"])
    for name in ("error", "copy_error"):
        job[name] = json.loads(job[name]) if job[name] else None
    return job
