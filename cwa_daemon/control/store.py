"""SQLite: jobs and their events. What is appended here is what happened; everything else is derived from it."""

from __future__ import annotations

import dataclasses
import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from cwa_daemon.control import listing
from cwa_daemon.control.database import Database
from cwa_daemon.control.job import Job
from cwa_daemon.pipe.place import PLANS, PULLS
from cwa_daemon.protocol import JobQuery, JobState
from cwa_engine.base.errors import CopyPending
from cwa_engine.base.plain import JsonMap

log = logging.getLogger(__name__)

_COLUMNS = ", ".join(field.name for field in dataclasses.fields(Job))
_LANE = f"CASE kind WHEN 'plan' THEN '{PLANS}' WHEN 'pull' THEN '{PULLS}' ELSE device END"  # as `Job.lane`
_DUE = (
    f"WHERE state = 'queued' AND {_LANE} IN (%s) AND NOT EXISTS"  # one that was done may have been pruned since
    " (SELECT 1 FROM jobs AS before WHERE before.run_id = jobs.after_run AND before.state != 'done')"
    " ORDER BY priority DESC, number"
)
_TO_BE_COPIED = f"(copy_error ->> 'code' = '{CopyPending.code}')"
_LAST_STATE = (
    "SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?1 AND body ->> 'kind' = 'state'"  # of a job: its number
)


class Store(Database):
    """Jobs and their events, through the control process's only thread. Each call is a transaction of well under 1 ms.

    Raises StateDamaged for what cannot be read or written any more, StateNotWritten on a full disk.
    """

    def _read_jobs(self, which: str, values: Sequence[Any] = ()) -> list[Job]:
        """The jobs of a condition, in its order. Raises StateDamaged, also for a row that is no job."""
        rows = self._read(f"SELECT {_COLUMNS} FROM jobs {which}", values)
        try:
            return [_job(row) for row in rows]
        except (ValueError, TypeError) as error:  # columns that hold JSON, and do not any more
            raise self._damaged(f"a job in it is no whole row: {error}") from error

    # jobs

    def run_ids(self) -> set[str]:
        """Of all jobs."""
        return {row["run_id"] for row in self._read("SELECT run_id FROM jobs")}

    def columns(self) -> set[str]:
        """Of the table of jobs."""
        return {row["name"] for row in self._read("PRAGMA table_info(jobs)")}

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

    def job(self, run_id: str) -> Job | None:
        return next(iter(self._read_jobs("WHERE run_id = ?", [run_id])), None)

    def job_by_client_key(self, client_key: str) -> Job | None:
        return next(iter(self._read_jobs("WHERE client_key = ?", [client_key])), None)

    def mark(self, run_id: str, tags: Sequence[str], note: str) -> None:
        """Write the tags and the note of a job, in place of those that it had."""
        self.update_job(run_id, tags=" ".join(tags), note=note)

    def marks(self) -> dict[str, tuple[list[str], str]]:
        """Run id -> (tags, note), of the jobs that have any."""
        rows = self._read("SELECT run_id, tags, note FROM jobs WHERE tags != '' OR note != ''")
        return {row["run_id"]: (row["tags"].split(), row["note"]) for row in rows}

    def jobs_like(self, part: str) -> list[Job]:
        """Jobs whose run id begins or ends with `part`, latest first."""
        escaped = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return self._read_jobs(
            "WHERE run_id LIKE ? ESCAPE '\\' OR run_id LIKE ? ESCAPE '\\' ORDER BY number DESC LIMIT 20",
            [f"{escaped}%", f"%{escaped}"],
        )

    def jobs(self, limit: int = 50, state: str | None = None, kind: str | None = None) -> list[Job]:
        """The latest jobs, latest first."""
        states, kinds = (state,) if state else (), (kind,) if kind else ()
        return self.page(JobQuery(limit=limit, states=states, kinds=kinds))

    def page(self, query: JobQuery) -> list[Job]:
        """The jobs that a query asks for."""
        found, values = listing.found(query)
        order = listing.order(query, time.time())
        # Their numbers first: sorting whole rows of 5000 jobs takes 70 ms, sorting numbers 2.
        return self._read_jobs(
            f"WHERE number IN (SELECT number FROM {found} ORDER BY {order} LIMIT ? OFFSET ?) ORDER BY {order}",
            [*values, query.limit, query.offset],
        )

    def total(self, query: JobQuery) -> int:
        """How many jobs a query finds in all."""
        found, values = listing.found(query)
        return int(self._read(f"SELECT count(*) FROM {found}", values)[0][0])

    def runnable(self, *lanes: str, limit: int = 100) -> list[Job]:
        """Queued jobs of these lanes, or of what they are asked for by, that wait for no other; in the order they are due."""
        return self._read_jobs(f"{_due(lanes)} LIMIT ?", [*lanes, limit])

    def due(self, *lanes: str) -> list[str]:
        """The run ids of all of them."""
        return [row[0] for row in self._read(f"SELECT run_id FROM jobs {_due(lanes)}", lanes)]

    def waiting_for(self, run_id: str) -> list[Job]:
        """Jobs that are to begin when this one is done."""
        return self._read_jobs("WHERE after_run = ? AND state IN ('queued', 'paused') ORDER BY number", [run_id])

    def ended_before(self, moment: float) -> list[Job]:
        """Jobs that ended before `moment`, seconds since the epoch, and are not being copied; oldest first."""
        return self._read_jobs(f"WHERE finished < ? AND {_TO_BE_COPIED} IS NOT TRUE ORDER BY number", [moment])

    def data_files(self) -> list[str]:
        """The files of texts that jobs use."""
        rows = self._read("SELECT DISTINCT spec ->> 'data_file' AS file FROM jobs WHERE file IS NOT NULL")
        return [row["file"] for row in rows]

    def unfinished_with_output(self, folder: str) -> list[Job]:
        """Jobs that are to write their files to a folder."""
        return self._read_jobs(
            f"WHERE (state IN ('queued', 'paused', 'running') OR {_TO_BE_COPIED}) AND spec ->> 'output' = ?",
            [folder],
        )

    def to_be_copied(self) -> list[Job]:
        """Runs that are done, and whose files are not in their output folder yet; those that ended first come first."""
        return self._read_jobs(f"WHERE {_TO_BE_COPIED} ORDER BY finished")

    def first_number(self) -> int:
        """The number of the job that counts as the oldest; numbers give the order, for clocks may be put back."""
        return int(self._read("SELECT coalesce(min(number), 1) FROM jobs")[0][0])

    def remove_job(self, run_id: str) -> None:
        self._write("DELETE FROM jobs WHERE run_id = ?", [run_id])

    def remove_events(self, run_id: str, but_the_end: bool = False) -> int:
        """Forget what a job has said, if asked but for how it ended; gives how many events that were."""
        before = f"({_LAST_STATE})" if but_the_end else str(2**62)
        return len(self._write(f"DELETE FROM events WHERE run_id = ?1 AND seq < {before} RETURNING 1", [run_id]))

    def lanes_with_queued_jobs(self) -> list[str]:
        """Their lanes, or what they are asked for by."""
        return [row[0] for row in self._read(f"SELECT DISTINCT {_LANE} FROM jobs WHERE state = 'queued'")]

    def count(self, state: str) -> int:
        return int(self._read("SELECT count(*) FROM jobs WHERE state = ?", [state])[0][0])

    # events

    def append_event(self, run_id: str, event: JsonMap) -> JsonMap:
        """Store an event under the next number of its job, the first being 1; gives it as `events` will.

        It has happened at its `time`, seconds since the epoch, or where it has none, now.
        """
        body = dict(event)
        moment = body.pop("time", None) or time.time()
        rows = self._write(
            "INSERT INTO events SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3 FROM events WHERE run_id = ?1 RETURNING seq",
            [run_id, moment, json.dumps(body, allow_nan=False)],
        )
        return {"seq": rows[0][0], "time": moment, **body}

    def events(self, run_id: str, after_seq: int, limit: int) -> list[JsonMap]:
        """The next `limit` events after number `after_seq`, in order."""
        rows = self._read(
            "SELECT seq, time, body FROM events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            [run_id, after_seq, limit],
        )
        try:
            return [{"seq": row["seq"], "time": row["time"], **_event(row["body"])} for row in rows]
        except (ValueError, TypeError) as error:
            raise self._damaged(f"an event in it is no whole row: {error}") from error

    def last_stage(self, run_id: str) -> str | None:
        """The stage of a job that was last heard of since its state changed."""
        rows = self._read(
            f"SELECT body ->> 'stage' FROM events WHERE run_id = ?1 AND seq > ({_LAST_STATE})"
            " AND body ->> 'stage' IS NOT NULL ORDER BY seq DESC LIMIT 1",
            [run_id],
        )
        return str(rows[0][0]) if rows else None

    def last_time(self, run_id: str) -> float | None:
        """When a job's last event happened, in seconds since the epoch; None without any."""
        rows = self._read("SELECT time FROM events WHERE run_id = ? ORDER BY seq DESC LIMIT 1", [run_id])
        return rows[0][0] if rows else None

    def without_headline(self) -> list[str]:
        """The run ids of those that are done and whose headline was never looked for, the latest first."""
        rows = self._read(
            "SELECT run_id FROM jobs WHERE kind = 'run' AND state = 'done' AND headline IS NULL ORDER BY number DESC"
        )
        return [row[0] for row in rows]

    def last_number(self, run_id: str) -> int:
        """The highest `number` that a worker gave to an event of a job since its state changed last; 0 without any."""
        rows = f"SELECT coalesce(max(body ->> 'number'), 0) FROM events WHERE run_id = ?1 AND seq > ({_LAST_STATE})"
        return int(self._read(rows, [run_id])[0][0])

    def fingerprint(self, run_id: str) -> str | None:
        """The fingerprint that a run's files had when it was done; None where that was not written down."""
        rows = self._read(
            "SELECT body ->> 'fingerprint' FROM events WHERE run_id = ? AND body ->> 'state' = 'done'"
            " ORDER BY seq DESC LIMIT 1",
            [run_id],
        )
        return rows[0][0] if rows else None

    def last_seq(self, run_id: str) -> int:
        return int(self._read("SELECT coalesce(max(seq), 0) FROM events WHERE run_id = ?", [run_id])[0][0])


def _due(lanes: Sequence[str]) -> str:
    return _DUE % ", ".join("?" * len(lanes))


def _event(body: str) -> JsonMap:
    """An event as it was recorded, without the number that its worker gave it."""
    event: JsonMap = json.loads(body)
    event.pop("number", None)
    return event


def _column(value: Any) -> Any:
    return json.dumps(value, allow_nan=False) if isinstance(value, (dict, list)) else value


def _job(row: sqlite3.Row) -> Job:
    columns = dict(row)
    for name in ("spec", "options", "deaths"):
        columns[name] = json.loads(columns[name])
    for name in ("error", "copy_error", "headline"):
        columns[name] = json.loads(columns[name]) if columns[name] else None
    columns["tags"] = columns["tags"].split()
    return Job(**{**columns, "state": JobState(columns["state"])})
