"""From run folders back to the job database: what is published is in the folders, the database only lists it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from cwa_daemon.base.address import running_pid
from cwa_daemon.base.folder_lock import hold_lock
from cwa_daemon.base.settings import Settings
from cwa_daemon.control import leftovers
from cwa_daemon.control.database import SCHEMA_VERSION
from cwa_daemon.control.found_runs import NO_RUN, list_run, row_of, unknown_folders
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import JobState
from cwa_engine.base.errors import InvalidInput
from cwa_engine.prompt_spec import spec_of_kind
from cwa_engine.records.checksums import fingerprint_of

MOST_JOBS = 1_000_000  # of a damaged database that are looked for
_NOT_DAMAGE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")


def repair(settings: Settings) -> list[str]:
    """Set a damaged database aside, list finished runs anew, remove leftovers; gives what was done, in sentences.

    Raises InvalidInput while a daemon runs.
    """
    if pid := running_pid(settings):
        raise InvalidInput(f"the daemon (pid {pid}) uses these files", hint="`cwtool daemon stop`, then repair")
    with hold_lock(settings):
        return _repair(settings)


def _repair(settings: Settings) -> list[str]:
    done, aside = [], None
    newer = settings.database.exists() and schema_of(settings.database) > SCHEMA_VERSION  # sound: the store refuses it
    if settings.database.exists() and not newer and damage(settings.database):
        aside = settings.database.with_name(f"{settings.database.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        for ending in ("", "-wal", "-shm"):
            part = settings.database.with_name(settings.database.name + ending)
            if part.exists():
                shutil.move(part, aside.with_name(aside.name + ending))
        done.append(f"the damaged database was set aside as {aside}")
    if gone := leftovers.remove(settings):
        done.append(f"removed {len(gone)} files and folders that killed processes had left")
    store = Store(settings.database)
    if aside and (jobs := salvage(store, aside)):
        done.append(f"found {jobs} jobs in what is left of it")
    found, unreadable = reindex(store, settings.runs)
    store.close()
    if found:
        done.append(f"found {found} finished runs again")
    done += [f"{folder} could not be read, and was left alone" for folder in unreadable]
    return done


def schema_of(database: Path) -> int:
    """The version of a database's schema; 0 where that cannot be read."""
    with (
        contextlib.suppress(sqlite3.DatabaseError),
        contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection,
    ):
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    return 0


def damage(database: Path) -> str:
    """What SQLite finds wrong with a database file, empty for a sound one; the file is only read."""
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            connection.execute("SELECT count(*) FROM jobs").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        busy = error.sqlite_errorname.startswith(_NOT_DAMAGE)  # a sound database is never set aside
        return "" if busy else str(error)
    return "" if found == "ok" else str(found)


def salvage(store: Store, damaged: Path) -> int:
    """Take over the jobs that can still be read from a damaged database, those that wait among them; gives how many.

    Of what they said only their state is kept. Rows are read one by one, for a damaged page spoils those on it alone.
    """
    known = store.columns()
    with contextlib.closing(sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [row for number in _numbers(connection) if (row := _whole_row(connection, number))]
    for row in rows:
        if "worked_s" not in row and row["started"] and row["finished"]:  # of an earlier schema
            row["worked_s"] = max(0.0, row["finished"] - row["started"])
        store.add_job(**{name: value for name, value in row.items() if name in known})
        error = json.loads(row["error"]) if row["error"] else None
        store.append_event(row["run_id"], {"kind": "state", "state": row["state"], "error": error})
    return len(rows)


def _numbers(connection: sqlite3.Connection) -> range:
    """The numbers that jobs may have; none where not even that can be told."""
    with contextlib.suppress(sqlite3.DatabaseError, TypeError):
        return range(1, min(connection.execute("SELECT seq FROM sqlite_sequence").fetchone()[0], MOST_JOBS) + 1)
    return range(0)


def _whole_row(connection: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    try:
        row = connection.execute("SELECT * FROM jobs WHERE number = ?", [number]).fetchone()
        if row is None:
            return None
        spec_of_kind(row["kind"], json.loads(row["spec"]))
        JobState(row["state"])
        return dict(row)
    except (sqlite3.DatabaseError, ValueError, TypeError):
        return None


def reindex(store: Store, runs: Path) -> tuple[int, list[str]]:
    """Add every finished run that the database does not list; gives how many, and the folders that are no whole runs."""
    unreadable, rows = [], []
    for folder in unknown_folders(runs, store.run_ids()):
        try:
            rows.append(row_of(folder))
        except NO_RUN:
            unreadable.append(folder.name)
    first = store.first_number() - len(rows)  # a run found again is older than every one that is listed
    for number, row in enumerate(sorted(rows, key=lambda row: row["created"]), start=first):
        list_run(store, row, fingerprint_of(runs / row["run_id"]), number=number)
    return len(rows), unreadable
