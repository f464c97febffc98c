"""From run folders to rows: what is new or changed is read, compared with its hashes, and kept. torch-free."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from cwa_engine.base.errors import CwaError
from cwa_engine.base.table import csv_text
from cwa_engine.queries.batches import FOLDER, BatchFolder, Part, Runs, Taken, literal, quoted, signatures
from cwa_engine.queries.columns import TEXT
from cwa_engine.queries.tables import FILE_TABLES, RUN_ID, RUNS, SUMMARY_TABLES, FileTable, QueryTable, SummaryTable
from cwa_engine.records.checksums import read_checked
from cwa_engine.records.run_report import RunReport, open_run

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Say = Callable[[str], None]
MANY = 200  # runs to be taken up, of which something is said before
MOST_LINE = 2**24  # bytes


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run folder of which nothing is queried."""

    folder: str
    reason: str


@dataclass(frozen=True)
class UpToDate:
    """Where the rows of each table are, and which runs have none for a reason."""

    parts: Mapping[str, Sequence[Part]]  # by table
    left_out: tuple[LeftOut, ...]


class Archive:
    """Run folders and what the cache has of them."""

    def __init__(self, connection: DuckDBPyConnection, runs: Path, cache: Path, say: Say, stack: ExitStack) -> None:
        self._connection = connection
        self._runs = runs
        self._cache = cache
        self._say = say
        self._stack = stack
        self._left_out: dict[str, str] = {}

    def up_to_date(self, asked: Iterable[str]) -> UpToDate:
        """Take up what is new or changed since the last time, for the tables that are asked for. Raises OSError."""
        current = signatures(self._runs)
        summaries = {table.name: self._batches(table) for table in SUMMARY_TABLES}
        self._take_up_summaries(current, summaries)
        sound = self._without_copies(summaries[RUNS.name].known(current))
        files = {table.name: self._batches(table) for table in FILE_TABLES if table.name in asked}
        for batches in files.values():
            self._take_up_files(sound, batches)
        every = {**summaries, **files}
        for batches in every.values():
            batches.tidy(sound)
        left_out = tuple(LeftOut(name, reason) for name, reason in sorted(self._left_out.items()))
        return UpToDate({name: batches.parts(sound) for name, batches in every.items()}, left_out)

    def _batches(self, table: QueryTable) -> BatchFolder:
        return BatchFolder(self._connection, self._cache / table.name, table, self._stack)

    def _without_copies(self, known: Runs) -> dict[str, Taken]:
        """Of two folders with the same run one counts, or its rows would be there twice."""
        first: dict[str, str] = {}
        for name in sorted(known, key=lambda name: (name != known[name].run_id, name)):
            if (other := first.setdefault(known[name].run_id, name)) != name:
                self._left_out[name] = f"it holds the same run as {other}"
        return {name: known[name] for name in first.values()}

    # summaries

    def _take_up_summaries(self, current: Mapping[str, str], folders: Mapping[str, BatchFolder]) -> None:
        known = [set(batches.known(current)) for batches in folders.values()]
        missing = sorted(current.keys() - set.intersection(*known))
        if len(missing) >= MANY:
            self._say(f"taking up {len(missing):,} runs; from now on only what is new is read")
        taken: dict[str, Taken] = {}
        with ExitStack() as stack:
            files = {table.name: stack.enter_context(self._scratch()) for table in SUMMARY_TABLES}
            for name in missing:
                try:
                    report = open_run(self._runs / name)
                    lines = {table.name: _json_lines(table, name, report) for table in SUMMARY_TABLES}
                except CwaError as error:
                    self._left_out[name] = error.message
                    continue
                for table_name, text in lines.items():
                    files[table_name].write(text)
                taken[name] = Taken(current[name], report.run_id)
            for table in SUMMARY_TABLES:
                if taken:
                    folders[table.name].add(_json_rows(table, _source(files[table.name])), taken)

    def _scratch(self) -> IO[str]:
        """A file without a name, for what DuckDB is to read."""
        return TemporaryFile("w+", encoding="utf-8", newline="", dir=self._cache)

    # tables in files

    def _take_up_files(self, sound: Runs, batches: BatchFolder) -> None:
        import duckdb

        table = batches.table
        assert isinstance(table, FileTable)
        missing = sorted(sound.keys() - batches.known({name: run.signature for name, run in sound.items()}).keys())
        if not missing:
            return
        try:
            self._keep_files(missing, sound, batches)
        except duckdb.Error:  # a value of one of them is not what its column holds
            self._keep_files([name for name in missing if self._can_be_read(table, name)], sound, batches)

    def _keep_files(self, names: Iterable[str], sound: Runs, batches: BatchFolder) -> None:
        table = batches.table
        assert isinstance(table, FileTable)
        taken: dict[str, Taken] = {}
        with self._scratch() as file:
            for name in names:
                try:
                    rows = list(self._rows(table, name, sound[name].run_id))
                except (CwaError, ValueError) as error:
                    self._leave_out(name, table, error.message if isinstance(error, CwaError) else str(error))
                    continue
                file.write(csv_text(rows))
                taken[name] = sound[name]
            batches.add(_csv_rows(table, _source(file)), taken)

    def _can_be_read(self, table: FileTable, name: str) -> bool:
        """Whether DuckDB takes the rows of a run; else it is left out."""
        import duckdb

        try:
            with self._scratch() as file:
                file.write(csv_text(self._rows(table, name, "")))
                self._connection.execute(_csv_rows(table, _source(file))).fetchall()
        except duckdb.Error as error:
            why = re.search(r"Error when converting.*", str(error))
            self._leave_out(name, table, why[0] if why else str(error).partition("\n")[0])
            return False
        except (CwaError, ValueError):
            pass  # it is named when its rows are to be kept
        return True

    def _leave_out(self, name: str, table: FileTable, why: str) -> None:
        self._left_out[name] = f"its {table.name} cannot be read: {why}"

    def _rows(self, table: FileTable, name: str, run_id: str) -> Iterator[list[str]]:
        folder = self._runs / name
        for file, named in table.files(path.name for path in folder.iterdir()).items():
            before = [name, run_id, *([named] if table.name_gives else [])]
            for row in _in_order(table.table.row, read_checked(folder, file)):
                yield [*before, *row]


def _source(file: IO[str]) -> str:
    """What DuckDB opens to read a file that has no name."""
    file.flush()
    return f"/proc/self/fd/{file.fileno()}"


def _in_order(row: type, content: bytes) -> Iterator[Sequence[str]]:
    """The lines of a CSV file as they are written, with the columns of `row` in order.

    A column that an earlier version did not have gets its default. Raises ValueError for what is not such a file.
    """
    lines = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True)
    heading = next(lines, [])
    fields = dataclasses.fields(row)
    if heading == [field.name for field in fields]:
        yield from _whole(lines, len(heading))
        return
    places = [heading.index(field.name) if field.name in heading else None for field in fields]
    if lacking := [
        f.name for f, at in zip(fields, places, strict=True) if at is None and f.default is dataclasses.MISSING
    ]:
        raise ValueError(f"it has no column {lacking[0]}")
    defaults = ["" if field.default is None else str(field.default) for field in fields]
    for line in _whole(lines, len(heading)):
        yield [other if at is None else line[at] for at, other in zip(places, defaults, strict=True)]


def _whole(lines: Iterable[list[str]], width: int) -> Iterator[list[str]]:
    for number, line in enumerate(lines, start=2):
        if len(line) != width:
            raise ValueError(f"row {number} has {len(line)} columns of {width}")
        yield line


def _csv_rows(table: FileTable, source: str) -> str:
    """A SELECT of what `_rows` has written. An empty text is none where a column may have none."""
    columns = {FOLDER: TEXT, **table.columns}
    never_none = [FOLDER, RUN_ID, *([table.name_gives] if table.name_gives else []), *_texts(table.table.row)]
    return (
        f"SELECT * FROM read_csv({literal(source)}, header = false, auto_detect = false, delim = ',', quote = '\"',"
        f" escape = '\"', new_line = '\\n', nullstr = '', force_not_null = [{', '.join(map(literal, never_none))}],"
        f" max_line_size = {MOST_LINE}, columns = {_struct(columns)})"
    )


def _texts(row: type) -> list[str]:
    """Fields that are texts and never None."""
    hints = typing.get_type_hints(row)
    return [field.name for field in dataclasses.fields(row) if hints[field.name] is str]


def _json_lines(table: SummaryTable, folder: str, report: RunReport) -> str:
    rows = ({FOLDER: folder, RUN_ID: report.run_id, **row} for row in table.rows(report))
    return "".join(json.dumps(_utf8(row), allow_nan=False) + "\n" for row in rows)


def _utf8(value: Any) -> Any:
    """The value with what is no UTF-8 in its texts spelled out, as the bytes of a command line may be."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_utf8(key): _utf8(entry) for key, entry in value.items()}
    return [_utf8(entry) for entry in value] if isinstance(value, list) else value


def _json_rows(table: SummaryTable, source: str) -> str:
    """A SELECT of what `_json_lines` has written."""
    columns = {FOLDER: TEXT, **table.columns}
    return (
        f"SELECT {quoted(columns)} FROM read_json({literal(source)}, format = 'newline_delimited',"
        f" auto_detect = false, maximum_object_size = {MOST_LINE}, columns = {_struct(columns)})"
    )


def _struct(columns: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in columns.items()) + "}"
