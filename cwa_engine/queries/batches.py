"""What was taken up of run folders, kept as Parquet: for each table some files, each of the rows of many runs. torch-free.

It is only a cache. A file is named by the hash of its content, so one that is damaged is known and removed; it is written
whole, and says itself which runs it has and what their files looked like. No file is ever changed, so several processes may
read and write here at once: a file that is open can be read to its end by whoever opened it, even when it is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cwa_engine.base.files import is_abandoned, scratch_path
from cwa_engine.queries.tables import QueryTable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FOLDER = "__folder"  # the column of the name of a run's folder; not among those that are queried
MOST_FILES = 12  # of a table, before they are brought together
_SUFFIX, _RUNS = ".parquet", "cwtool_runs"


@dataclass(frozen=True, slots=True)
class Taken:
    """A run as it was when it was taken up."""

    signature: str  # of the names, sizes and times of its files
    run_id: str


Runs = Mapping[str, Taken]  # by the name of a run's folder


@dataclass(frozen=True, slots=True)
class Batch:
    """A Parquet file of some runs, open."""

    path: Path
    source: str  # what DuckDB opens: the same file, whatever has become of its name
    runs: Runs


@dataclass(frozen=True, slots=True)
class Part:
    """A batch, and which of its runs count."""

    batch: Batch
    counted: frozenset[str]

    @property
    def sql(self) -> str:
        """A SELECT of the rows that count, with the column of their folder."""
        everything = f"SELECT * FROM read_parquet({literal(self.batch.source)})"
        left_out = self.batch.runs.keys() - self.counted
        if not left_out:
            return everything
        test, names = ("IN", self.counted) if len(self.counted) < len(left_out) else ("NOT IN", left_out)
        return f'{everything} WHERE "{FOLDER}" {test} ({", ".join(map(literal, sorted(names)))})'


class BatchFolder:
    """The batches of one table. What is opened here is closed with the stack."""

    def __init__(self, connection: DuckDBPyConnection, folder: Path, table: QueryTable, stack: ExitStack) -> None:
        self.table = table
        self._connection = connection
        self._folder = folder
        self._stack = stack
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._batches = list(self._opened())

    def parts(self, current: Runs) -> list[Part]:
        """Where the rows of runs are that are as they were when they were taken up; each run is in one part alone."""
        found, seen = [], set[str]()
        for batch in self._batches:
            counted = {name for name, taken in batch.runs.items() if current.get(name) == taken} - seen
            seen |= counted
            if counted:
                found.append(Part(batch, frozenset(counted)))
        return found

    def known(self, signatures: Mapping[str, str]) -> dict[str, Taken]:
        """Those runs of which the files are as they were when they were taken up, by the signatures that they have now."""
        known: dict[str, Taken] = {}
        for batch in self._batches:
            for name, taken in batch.runs.items():
                if signatures.get(name) == taken.signature:
                    known.setdefault(name, taken)
        return known

    def add(self, rows: str, runs: Runs) -> Path:
        """Keep what a SELECT gives as the rows of some runs; gives the file."""
        scratch = scratch_path(self._folder / "batch")
        metadata = json.dumps({name: [taken.signature, taken.run_id] for name, taken in runs.items()})
        try:
            self._connection.execute(
                f"COPY ({rows}) TO {literal(str(scratch))} (FORMAT parquet, KV_METADATA {{{_RUNS}: {literal(metadata)}}})"
            )
            with scratch.open("rb") as file:
                path = self._folder / (hashlib.file_digest(file, "blake2b").hexdigest()[:40] + _SUFFIX)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        if path not in {batch.path for batch in self._batches} and (batch := self._open(path)):
            self._batches.append(batch)
        return path

    def tidy(self, current: Runs) -> None:
        """Remove batches of which no run counts, and bring the others together where there are many."""
        parts = self.parts(current)
        if len(parts) > MOST_FILES:
            runs = {name: current[name] for part in parts for name in part.counted}
            together = self.add(" UNION ALL ".join(part.sql for part in parts), runs)
            parts = [Part(batch, frozenset(runs)) for batch in self._batches if batch.path == together] or parts
        useful = {part.batch.path for part in parts}
        for batch in self._batches:
            if batch.path not in useful:
                batch.path.unlink(missing_ok=True)
        self._batches = [part.batch for part in parts]

    def _opened(self) -> Iterator[Batch]:
        for path in sorted(self._folder.iterdir()):
            if is_abandoned(path):
                path.unlink(missing_ok=True)
            elif path.suffix == _SUFFIX and (batch := self._open(path)):
                yield batch

    def _open(self, path: Path) -> Batch | None:
        """The batch in a file; None for one that is damaged, which is removed, or that somebody else has removed."""
        try:
            file = self._stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            return None
        if hashlib.file_digest(file, "blake2b").hexdigest()[:40] != path.stem:
            path.unlink(missing_ok=True)
            return None
        source = f"/proc/self/fd/{file.fileno()}"
        found = self._connection.execute(
            "SELECT value FROM parquet_kv_metadata(?) WHERE key = ?", [[source], _RUNS.encode()]
        ).fetchone()
        assert found, path  # nobody else gives a file such a name
        return Batch(path, source, {name: Taken(*taken) for name, taken in json.loads(found[0]).items()})


def signatures(folder: Path) -> dict[str, str]:
    """Name of each run folder -> a hash of the names, sizes and times of its files. Raises OSError."""
    return dict(_signatures(folder))


def _signatures(folder: Path) -> Iterator[tuple[str, str]]:
    with os.scandir(folder) as runs:
        for run in runs:
            if run.name.startswith(".") or not run.is_dir():
                continue
            try:
                with os.scandir(run) as files:
                    found = sorted((file.name, *_size_and_time(file.stat())) for file in files)
            except FileNotFoundError:  # it is being removed
                continue
            yield run.name, hashlib.blake2b(repr(found).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _size_and_time(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def quoted(names: Iterable[str]) -> str:
    """Names of columns as SQL writes them."""
    return ", ".join('"' + name.replace('"', '""') + '"' for name in names)
