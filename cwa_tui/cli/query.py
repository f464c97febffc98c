"""`cwtool results query`: SQL over all finished runs of this machine."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwa_engine.base.errors import CwaError, InvalidInput
from cwa_engine.base.files import user_path
from cwa_tui.cli.connection import connect, refuse_other_host
from cwa_tui.cli.output import say, show, show_exactly
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from cwa_engine.queries.asking import Mark, QueryAnswer
    from cwa_engine.queries.taking_up import LeftOut
    from cwa_tui.cli.lines import LineTable

SHOWN = 100  # rows of a table, where no limit is given
MOST_NAMED = 5  # runs that are left out

Sql = Annotated[
    str | None,
    typer.Argument(
        help="One SELECT in DuckDB's SQL, or - to read it from standard input.", show_default=False, metavar="SQL"
    ),
]


def query(
    sql: Sql = None,
    tables: Annotated[bool, typer.Option("--tables", help="List the tables and their columns.")] = False,
    runs: Annotated[
        str | None,
        typer.Option(
            help="Query the run folders in this folder; if left out, all runs of this machine.", metavar="FOLDER"
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", min=1, help="How many rows; all of them as CSV and JSON.", show_default=str(SHOWN)
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with exact numbers.")] = False,
    as_json: Json = False,
) -> None:
    """Ask SQL of all finished runs: `cwtool results query "SELECT model, k, ratio FROM runs JOIN separations USING (run_id)"`.

    What runs have is read once; from then on only what is new. Runs of which a file was altered are left out and named."""
    refuse_other_host("results query")
    if as_csv and as_json:
        raise InvalidInput("--csv and --json are two formats", hint="give one of them")
    if tables == (sql is not None):
        raise InvalidInput(
            "give a query or --tables" if tables else "nothing was asked",
            hint='like `cwtool results query "SELECT run_id, model FROM runs"`; --tables lists tables and columns',
        )
    if sql is None:
        _show_tables(as_csv, as_json)
        return
    asked = sys.stdin.read() if sql == "-" else sql
    all_rows = as_csv or as_json
    answer = run_query(asked, user_path(runs, "--runs") if runs else None, limit or (None if all_rows else SHOWN))
    if as_json:
        show({"rows": [{name: plain(value) for name, value in row.items()} for row in answer], "more": answer.more})
    elif as_csv:
        show_exactly(_csv(answer))
    elif answer.rows:
        _show_table(answer)
    else:
        show("no rows")
    if answer.more:
        say(f"the first {len(answer):,} rows; -n lists more")


def run_query(sql: str, runs: Path | None = None, limit: int | None = None) -> QueryAnswer:
    """What a query gives, with the tags and notes of the daemon. Says which runs are left out."""
    from cwa_engine.queries import asking

    answer = asking.query(sql, runs, _marks(sql), limit, say)
    _say_left_out(answer.left_out)
    return answer


def runs_where(condition: str) -> set[str]:
    """The run ids of the runs for which a condition holds."""
    refuse_other_host("results list --where")
    answer = run_query(f"SELECT run_id FROM runs WHERE (\n{condition}\n)")
    return {row["run_id"] for row in answer}


def _marks(sql: str) -> dict[str, Mark]:
    """Tags and notes of all runs, where a query is about them. It is not for its own sake that a daemon is started."""
    from cwa_engine.queries.asking import Mark

    if not re.search(r"\b(tags|note)\b|(?<!\()\*", sql, re.IGNORECASE):
        return {}
    try:
        with connect(start=False) as client:
            return {run_id: Mark(tuple(mark.tags), mark.note) for run_id, mark in client.marks().items()}
    except CwaError as error:
        if re.search(r"\b(tags|note)\b", sql, re.IGNORECASE):
            say(f"tags and notes are empty: {error.message}")
        return {}


def _say_left_out(left_out: tuple[LeftOut, ...]) -> None:
    for run in left_out[:MOST_NAMED]:
        say(f"left out: {run.folder}: {run.reason}")
    if len(left_out) > MOST_NAMED:
        say(f"left out: {len(left_out) - MOST_NAMED} more, which cannot be queried either")


def _show_tables(as_csv: bool, as_json: bool) -> None:
    from cwa_engine.base.table import csv_text
    from cwa_engine.queries.asking import all_columns
    from cwa_engine.queries.tables import TABLES

    found = all_columns()
    if as_json:
        show({name: {"what": TABLES[name].what, "columns": columns} for name, columns in found.items()})
        return
    rows = [(table, column, kind) for table, columns in found.items() for column, kind in columns.items()]
    if as_csv:
        show_exactly(csv_text([("table", "column", "type"), *rows]))
        return
    for name, columns in found.items():
        widest = max(map(len, columns))
        show(f"{name}: {TABLES[name].what}")
        show("".join(f"  {column:{widest}}  {kind}\n" for column, kind in columns.items()))


def _show_table(answer: QueryAnswer) -> None:
    from cwa_tui.cli.lines import columns_left_out

    table = _line_table(answer)
    show(table)
    if hidden := columns_left_out(table):
        say(f"there is no room for {', '.join(hidden)}; --csv prints all columns")


def _line_table(answer: QueryAnswer) -> LineTable:
    from cwa_tui.cli.lines import RUN_ID, Field, LineTable, Row

    keys = [RUN_ID if name == "run_id" else name for name in answer.columns]
    numbers = {key for key, kind in zip(keys, answer.types, strict=True) if kind in _NUMBERS}
    fields = [
        Field(key, least=0 if key in numbers or key == RUN_ID else 10, optional=place, right=key in numbers)
        for place, key in enumerate(keys)
    ]
    rows = [Row({key: _cell(value) for key, value in zip(keys, row, strict=True)}) for row in answer.rows]
    return LineTable(fields, rows)


_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "UBIGINT", "UINTEGER")


def _cell(value: Any) -> str:
    """A value in a table: numbers to six digits, lists with commas."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict) else _text(value)


def _csv(answer: QueryAnswer) -> str:
    from cwa_engine.base.table import csv_text

    return csv_text([answer.columns, *([_csv_cell(value) for value in row] for row in answer.rows)])


def _csv_cell(value: Any) -> Any:
    """Floats by repr, as the CSV files of a run have them; lists and maps as JSON."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return json.dumps(plain(value), ensure_ascii=False) if isinstance(value, (list, dict)) else _text(value)


def plain(value: Any) -> Any:
    """A value of DuckDB as JSON has it; a float that is not finite is null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(plain(key)): plain(entry) for key, entry in value.items()}
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ")
    return value.hex() if isinstance(value, bytes) else str(value)
