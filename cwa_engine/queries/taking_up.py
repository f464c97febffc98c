"""From run folders to rows: what is new or changed is read, compared with its hashes, and kept. torch-free."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

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
AT_ONCE = 1000  # runs whose summaries are in memory
MOST_TEXT = 2**26  # characters of tables in memory
MOST_LINE = 2**24  # bytes


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A run folder of which nothing is queried."""

    folder: str
    reason: str


@dataclass(frozen=True)
class TakenUp:
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

    def up_to_date(self, asked: Iterable[str]) -> TakenUp:
        """Take up what is new or changed since the last time, for the tables that are asked for. Raises OSError."""
        current = signatures(self._runs)
        summaries = {table.name: self._batches(table) for table in SUMMARY_TABLES}
        self._take_up_summaries(current, summaries)
        known = summaries[RUNS.name].known(current)
        sound = self._without_copies({name: run for name, run in known.items() if name not in self._left_out})
        files = {table.name: self._batches(table) for table in FILE_TABLES if table.name in asked}
        for batches in files.values():
            self._take_up_files(sound, batches)
        every = {**summaries, **files}
        for batches in every.values():
            batches.tidy(sound)
        left_out = tuple(LeftOut(name, reason) for name, reason in sorted(self._left_out.items()))
        return TakenUp({name: batches.parts(sound) for name, batches in every.items()}, left_out)

    def _batches(self, table: QueryTable) -> BatchFolder:
        return BatchFolder(self._connection, self._cache / table.name, table, self._stack)

    def _without_copies(self, known: Runs) -> dict[str, Taken]:
        """Of two folders with the same run one counts, or its rows would be there twice."""
        first: dict[str, str] = {}
        for name in sorted(known, key=lambda name: (name != known[name].run_id, name)):
            if (other := first.setdefault(known[name].run_id, name)) != name:
                self._left_out[name] = f"it holds the same run as {other}"
        return {name: known[name] for name in first.values()}

    def _take_up_summaries(self, current: Mapping[str, str], folders: Mapping[str, BatchFolder]) -> None:
        known = [set(batches.known(current)) for batches in folders.values()]
        missing = sorted(current.keys() - set.intersection(*known))
        if len(missing) >= MANY:
            self._say(f"taking up {len(missing):,} runs; from now on only what is new is read")
        for first in range(0, len(missing), AT_ONCE):
            lines: dict[str, dict[str, str]] = {table.name: {} for table in SUMMARY_TABLES}
            taken: dict[str, Taken] = {}
            for name in missing[first : first + AT_ONCE]:
                try:
                    report = open_run(self._runs / name)
                    taken[name] = Taken(current[name], report.run_id)
                    for table in SUMMARY_TABLES:
                        lines[table.name][name] = _json_lines(table, name, report)
                except CwaError as error:
                    self._left_out[name] = error.message
            for table in SUMMARY_TABLES:
                self._keep(folders[table.name], lines[table.name], taken, partial(_json_rows, table))

    def _take_up_files(self, sound: Runs, batches: BatchFolder) -> None:
        table = batches.table
        assert isinstance(table, FileTable)
        select = partial(_csv_rows, table)
        texts: dict[str, str] = {}
        size = 0
        for name in sorted(sound.keys() - batches.known({name: run.signature for name, run in sound.items()}).keys()):
            try:
                texts[name] = csv_text(self._rows(table, name, sound[name].run_id))
            except (CwaError, ValueError) as error:
                self._leave_out(name, table, error.message if isinstance(error, CwaError) else str(error))
                continue
            size += len(texts[name])
            if size > MOST_TEXT:
                self._keep(batches, texts, sound, select)
                texts, size = {}, 0
        self._keep(batches, texts, sound, select)

    def _keep(self, batches: BatchFolder, texts: Mapping[str, str], runs: Runs, select: Callable[[str], str]) -> None:
        """Keep the rows of some runs, each written out in a text. A run whose rows DuckDB does not take is left out.

        `select` gives the SELECT that reads such a text.
        """
        import duckdb

        if not texts:
            return
        try:
            self._add(batches, texts, runs, select)
        except duckdb.Error:
            fit = {name: text for name, text in texts.items() if self._fits(batches.table, name, text, select)}
            if len(fit) == len(texts):
                raise
            self._keep(batches, fit, runs, select)

    def _add(self, batches: BatchFolder, texts: Mapping[str, str], runs: Runs, select: Callable[[str], str]) -> None:
        with self._written(texts.values()) as source:
            batches.add(select(source), {name: runs[name] for name in texts})

    def _fits(self, table: QueryTable, name: str, text: str, select: Callable[[str], str]) -> bool:
        import duckdb

        try:
            with self._written([text]) as source:
                self._connection.execute(select(source)).fetchall()
        except duckdb.Error as error:
            why = re.search(r"Error when converting.*", str(error))
            self._leave_out(name, table, why[0] if why else str(error).partition("\n")[0])
            return False
        return True

    def _leave_out(self, name: str, table: QueryTable, why: str) -> None:
        self._left_out[name] = f"its {table.name} cannot be read: {why}"

    @contextmanager
    def _written(self, texts: Iterable[str]) -> Iterator[str]:
        """Texts in a file that has no name; gives what DuckDB opens to read it."""
        with TemporaryFile("w", encoding="utf-8", newline="", dir=self._cache) as file:
            file.writelines(texts)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"

    def _rows(self, table: FileTable, name: str, run_id: str) -> Iterator[list[str]]:
        folder = self._runs / name
        for file, named in table.files(path.name for path in folder.iterdir()).items():
            before = [name, run_id, *([named] if table.name_gives else [])]
            for row in _in_order(table.table.row, read_checked(folder, file)):
                yield [*before, *row]


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
