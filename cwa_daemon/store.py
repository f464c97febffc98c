"""SQLite: jobs and their events. What is appended here is what happened; everything else is derived from it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwa_engine.errors import DaemonNotStartable

SCHEMA_VERSION = 1

_SCHEMA = """
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
"""


class Store:
    """One connection, used by the control process's only thread. Each call is a transaction of well under 1 ms."""

    def __init__(self, database: Path) -> None:
        try:
            self._db = sqlite3.connect(database, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(
                "PRAGMA synchronous = NORMAL"
            )  # a killed process loses nothing; a power cut at most a moment
            self._create_or_check(database)
        except sqlite3.DatabaseError as error:
            raise DaemonNotStartable(
                f"the job database {database} cannot be used: {error}",
                hint=f"move it aside (mv {database} {database}.damaged) and start again; run folders are not touched",
            ) from error

    def _create_or_check(self, database: Path) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise DaemonNotStartable(
                f"{database} was written by another version of cwtool (schema {version}, here {SCHEMA_VERSION})",
                hint="use that version, or set CWTOOL_HOME to another folder",
            )

    def close(self) -> None:
        self._db.close()

    # jobs

    def add_job(self, **columns: Any) -> None:
        names = ", ".join(columns)
        places = ", ".join("?" for _ in columns)
        self._db.execute(f"INSERT INTO jobs ({names}) VALUES ({places})", [_column(v) for v in columns.values()])

    def update_job(self, run_id: str, **columns: Any) -> None:
        assignments = ", ".join(f"{name} = ?" for name in columns)
        values = [_column(value) for value in columns.values()]
        self._db.execute(f"UPDATE jobs SET {assignments} WHERE run_id = ?", [*values, run_id])

    def job(self, run_id: str) -> dict[str, Any] | None:
        return _job(self._db.execute("SELECT * FROM jobs WHERE run_id = ?", [run_id]).fetchone())

    def job_by_client_key(self, client_key: str) -> dict[str, Any] | None:
        return _job(self._db.execute("SELECT * FROM jobs WHERE client_key = ?", [client_key]).fetchone())

    def jobs_like(self, part: str) -> list[dict[str, Any]]:
        """Jobs whose run id begins or ends with `part`, latest first."""
        escaped = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE run_id LIKE ? ESCAPE '\\' OR run_id LIKE ? ESCAPE '\\' ORDER BY number DESC LIMIT 20",
            [f"{escaped}%", f"%{escaped}"],
        )
        return [job for row in rows if (job := _job(row))]

    def jobs(self, limit: int = 50, state: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """The latest jobs, latest first."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR kind = ?2) ORDER BY number DESC LIMIT ?3",
            [state, kind, limit],
        )
        return [job for row in rows if (job := _job(row))]

    def next_queued(self, device: str) -> dict[str, Any] | None:
        """The job that has waited longest for this device."""
        row = self._db.execute(
            "SELECT * FROM jobs WHERE state = 'queued' AND device = ? ORDER BY number LIMIT 1", [device]
        ).fetchone()
        return _job(row)

    def devices_with_queued_jobs(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT DISTINCT device FROM jobs WHERE state = 'queued'")]

    def count(self, state: str) -> int:
        return int(self._db.execute("SELECT count(*) FROM jobs WHERE state = ?", [state]).fetchone()[0])

    # events

    def append_event(self, run_id: str, event: dict[str, Any]) -> int:
        """Store an event under the next number of its job, and return that number; the first is 1."""
        row = self._db.execute(
            "INSERT INTO events SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3 FROM events WHERE run_id = ?1 RETURNING seq",
            [run_id, time.time(), json.dumps(event, allow_nan=False)],
        ).fetchone()
        return int(row[0])

    def events(self, run_id: str, after_seq: int, limit: int) -> Iterator[dict[str, Any]]:
        """The next `limit` events after number `after_seq`, in order."""
        rows = self._db.execute(
            "SELECT seq, time, body FROM events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            [run_id, after_seq, limit],
        )
        for row in rows.fetchall():
            yield {"seq": row["seq"], "time": row["time"], **json.loads(row["body"])}

    def last_seq(self, run_id: str) -> int:
        row = self._db.execute("SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?", [run_id]).fetchone()
        return int(row[0])


def _column(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, dict) else value


def _job(row: sqlite3.Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    job = dict(row)
    job["spec"] = json.loads(job["spec"])
    job["error"] = json.loads(job["error"]) if job["error"] else None
    return job
