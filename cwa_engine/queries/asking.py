"""SQL over thousands of runs: one SELECT, which can neither write nor reach anything else. torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import InvalidInput, NotFound, OutOfMemory, OutputError, did_you_mean
from cwa_engine.base.places import runs_folder, state_folder
from cwa_engine.base.version import __version__
from cwa_engine.queries.batches import literal, quoted
from cwa_engine.queries.columns import TEXT
from cwa_engine.queries.tables import RUN_ID, RUNS, TABLES
from cwa_engine.queries.taking_up import Archive, LeftOut, Say, TakenUp

if TYPE_CHECKING:
    import pandas
    from duckdb import DuckDBPyConnection

FORMAT = 1  # of the cache, beside its columns and the version of cwtool
MEMORY = "2GB"  # that a query may take
MARKS = {"tags": f"{TEXT}[]", "note": TEXT, "studies": f"{TEXT}[]"}  # columns of `runs` that a run folder does not have
_SELECTS = ("SELECT", "MULTI")  # types of statements; PIVOT is a MULTI
_ABOUT_STUDIES = re.compile(r"\bstudies\b|(?<!\()\*", re.IGNORECASE)  # count(*) is not
_LIST = "`cwtool results query --tables` lists tables and columns"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a user has written to a run."""

    tags: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class QueryAnswer:
    """What a query gives: `rows` in the order of `columns`. Iterated, it gives each row as a map."""

    columns: tuple[str, ...]
    types: tuple[str, ...]  # of the columns, in SQL
    rows: tuple[tuple[Any, ...], ...]
    more: bool = False  # whether there are more rows than were asked for
    left_out: tuple[LeftOut, ...] = ()  # runs that are not queried

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame. Raises InvalidInput where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise InvalidInput("pandas is not installed", hint="`pip install pandas`, or take the rows") from None
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))


def all_columns() -> dict[str, dict[str, str]]:
    """Table -> column -> its type in SQL, of everything that can be queried."""
    return {name: {**table.columns, **(MARKS if table is RUNS else {})} for name, table in TABLES.items()}


def query(
    sql: str,
    runs: Path | None = None,
    marks: Mapping[str, Mark] | None = None,
    limit: int | None = None,
    say: Say = lambda text: None,
) -> QueryAnswer:
    """What a SELECT gives of all runs in a folder, that of the state folder if left out; at most `limit` rows.

    `marks` are the tags and notes of runs, by run id. A run of which a file is not what the run wrote is left out, and
    named in `left_out`. Raises InvalidInput for what is no SELECT, and where duckdb is not installed; NotFound for a folder
    that is not there, OutOfMemory.
    """
    _import_duckdb()
    import duckdb

    folder = runs or runs_folder()
    with ExitStack() as stack:
        connection = stack.enter_context(duckdb.connect(":memory:"))
        connection.execute("SET enable_progress_bar = false")
        asked = _tables_of(connection, sql)
        found = _up_to_date(connection, folder, asked, say, stack) if runs or folder.is_dir() else TakenUp({}, ())
        for table in {RUNS.name, *asked, *found.parts}:  # one that the SQL does not name in so many words is not there
            _make_view(connection, table, found)
        _add_marks(connection, marks or {}, _studies_of_runs(say) if _ABOUT_STUDIES.search(sql) else {})
        _lock(connection, [part.batch.source for parts in found.parts.values() for part in parts])
        with _explained():
            cursor = connection.execute(sql)
            described = cursor.description or []
            rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
        names = _each_once([column[0] for column in described])
        kept = rows if limit is None else rows[:limit]
        types = tuple(str(column[1]) for column in described)
        return QueryAnswer(names, types, tuple(kept), len(kept) < len(rows), found.left_out)


def _import_duckdb() -> None:
    try:
        import duckdb  # noqa: F401
    except ImportError:
        raise InvalidInput(
            "queries need DuckDB, which is not installed", hint="`pip install 'cwtool[query]'`, or `pip install duckdb`"
        ) from None


def _tables_of(connection: DuckDBPyConnection, sql: str) -> set[str]:
    """The tables that a query reads, tried on empty ones: what is wrong with it is said before anything is taken up."""
    if "\0" in sql or any("\ud800" <= character <= "\udfff" for character in sql):
        raise InvalidInput("the query holds what is no text", hint="write it in UTF-8")
    with _explained():
        statements = connection.extract_statements(sql)
        if len(statements) != 1:
            what = "nothing was asked" if not statements else f"{len(statements)} statements were given"
            raise InvalidInput(what, hint='give one SELECT, like "SELECT run_id, model FROM runs"')
        if (kind := statements[0].type.name) not in _SELECTS:
            raise InvalidInput(f"{kind} is not allowed: a query only reads", hint="give a SELECT")
        for name, columns in all_columns().items():
            described = ", ".join(f"{quoted([column])} {kind}" for column, kind in columns.items())
            connection.execute(f"CREATE TABLE {quoted([name])} ({described})")
        if kind == "SELECT":
            connection.execute(f"EXPLAIN {sql}")
    for name in TABLES:
        connection.execute(f"DROP TABLE {quoted([name])}")
    return {name for name in TABLES if re.search(rf"\b{name}\b", sql, re.IGNORECASE)}


def _up_to_date(connection: DuckDBPyConnection, folder: Path, asked: set[str], say: Say, stack: ExitStack) -> TakenUp:
    try:
        return Archive(connection, folder, _cache_of(folder, say, stack), say, stack).up_to_date(asked)
    except NotADirectoryError as error:
        raise NotFound(f"{folder} is no folder", hint="give a folder of run folders") from error
    except FileNotFoundError as error:
        raise NotFound(f"there is no folder {folder}", hint="give a folder of run folders") from error
    except OSError as error:
        raise NotFound(
            f"{error.filename or folder} cannot be read: {error.strerror}", hint="check its permissions"
        ) from error


def _cache_of(folder: Path, say: Say, stack: ExitStack) -> Path:
    """Where what was taken up of a folder is kept, for as long as its columns are the same; for once where that cannot be."""
    columns = repr((FORMAT, __version__, {name: table.columns for name, table in TABLES.items()}))
    version, place = (hashlib.sha256(os.fsencode(text)).hexdigest()[:16] for text in (columns, str(folder.resolve())))
    cache = state_folder() / "cache" / "query" / place / version
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix="."):
            return cache
    except OSError as error:
        say(f"{cache} cannot be written ({error.strerror}), so the runs are read anew each time")
        return Path(stack.enter_context(TemporaryDirectory()))


def _make_view(connection: DuckDBPyConnection, name: str, found: TakenUp) -> None:
    columns = TABLES[name].columns
    parts = found.parts.get(name, ())
    rows = f"SELECT {quoted(columns)} FROM ({' UNION ALL '.join(part.sql for part in parts)})"
    if not parts:
        rows = (
            f"SELECT {', '.join(f'NULL::{kind} AS {quoted([column])}' for column, kind in columns.items())} WHERE false"
        )
    connection.execute(f"CREATE VIEW {quoted([_FOUND if name == RUNS.name else name])} AS {rows}")


_FOUND, _MARKS = "__found", "__marks"  # what `runs` is made of


def _add_marks(connection: DuckDBPyConnection, marks: Mapping[str, Mark], studies: Mapping[str, Sequence[str]]) -> None:
    """Make the view of runs: what run folders have, with the tags, the note and the studies of each run."""
    run_ids = sorted({*marks, *studies})
    found = [marks.get(run_id, Mark()) for run_id in run_ids]
    tags, notes = ["\n".join(mark.tags) for mark in found], [mark.note for mark in found]
    columns = [run_ids, tags, notes, ["\n".join(studies.get(run_id, ())) for run_id in run_ids]]
    unnested = ", ".join(f"unnest(?::{TEXT}[]) AS {name}" for name in (RUN_ID, *MARKS))
    connection.execute(f"CREATE TABLE {_MARKS} AS SELECT {unnested}", columns)
    lists = {
        name: f"CASE WHEN coalesce({name}, '') = '' THEN [] ELSE string_split({name}, chr(10)) END" for name in MARKS
    }
    shown = {**lists, "note": "coalesce(note, '')"}
    connection.execute(
        f"CREATE VIEW {RUNS.name} AS SELECT {_FOUND}.*, {', '.join(f'{sql} AS {name}' for name, sql in shown.items())}"
        f" FROM {_FOUND} LEFT JOIN {_MARKS} USING ({RUN_ID})"
    )


def _studies_of_runs(say: Say) -> dict[str, list[str]]:
    """Run id -> the ids of the studies of this machine that it is a run of."""
    from cwa_engine.studies.folder import StudyFolder

    found: dict[str, list[str]] = {}
    for folder in reversed(StudyFolder.all()):
        try:
            submissions, _ = folder.journal.read()
        except OutputError as error:
            say(f"the runs of study {folder.id} are not known: {error.message}")
            continue
        for submission in submissions.values():
            if submission.run_id:
                found.setdefault(submission.run_id, []).append(folder.id)
    return found


def _lock(connection: DuckDBPyConnection, files: Sequence[str]) -> None:
    """Let queries reach these files and nothing else: no other file, no network, no extension, no Python object."""
    for setting in (
        f"allowed_paths = [{', '.join(map(literal, files))}]",
        f"memory_limit = {literal(MEMORY)}",
        "temp_directory = ''",
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Errors of DuckDB as those of cwtool."""
    import duckdb

    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.OutOfMemoryException as error:
        raise OutOfMemory(
            f"the query needs more than {MEMORY} of memory", hint="ask for fewer columns, or for fewer runs with WHERE"
        ) from error
    except duckdb.PermissionException as error:
        raise InvalidInput("a query reads the tables of runs and nothing else", hint=_LIST) from error
    except duckdb.Error as error:
        said = " ".join(str(error).partition("\n\nLINE")[0].split())
        raise InvalidInput(_KIND.sub("", said), hint=f"{_near(said)} {_LIST}".strip()) from error


_KIND = re.compile(r"^[A-Z]\w* Error: | Candidate \w+: .*| Did you mean .*")
_UNKNOWN = re.compile(r'(?:column|Table with name|Values list) "?([^"\s!]+)"?')


def _near(said: str) -> str:
    """The name that was meant, where DuckDB does not know one and names some that it knows."""
    unknown = _UNKNOWN.search(said)
    known = re.findall(r'"([^"]+)"', said.partition(" Candidate bindings: ")[2]) or list(TABLES)
    return did_you_mean(unknown[1], known) if unknown else ""


def _each_once(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns with a number behind those that occur again: nll, nll_1."""
    seen: list[str] = []
    for name in names:
        number, unique = 0, name
        while unique in seen:
            number += 1
            unique = f"{name}_{number}"
        seen.append(unique)
    return tuple(seen)
