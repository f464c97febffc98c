"""Tables as Parquet files, each column of the type that its rows have. torch-free."""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Mapping
from typing import Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.version import __version__
from cwa_engine.exchange.tables import DataTable

_TYPES: Mapping[type, str] = {str: "string", int: "int64", float: "float64", bool: "bool_"}


def parquet_bytes(table: DataTable) -> bytes:
    """The table as a Parquet file. It reads back as the same rows: floats to the last bit, None as null.

    Raises InvalidInput where pyarrow is not installed.
    """
    arrow, parquet = _pyarrow()
    kinds = _kinds(table)
    schema = arrow.schema(
        [arrow.field(name, getattr(arrow, _TYPES[kind])(), nullable) for name, (kind, nullable) in kinds.items()],
        metadata={"cwtool": __version__, "table": table.name},
    )
    columns: list[Any] = list(map(list, zip(*table.cells(), strict=True))) or [[] for _ in kinds]
    arrays = [arrow.array(column, field.type, from_pandas=False) for column, field in zip(columns, schema, strict=True)]
    written = io.BytesIO()
    parquet.write_table(arrow.table(arrays, schema=schema), written)
    return written.getvalue()


def _kinds(table: DataTable) -> dict[str, tuple[type, bool]]:
    """Column -> (type of its values, whether it may be empty)."""
    hints = typing.get_type_hints(table.table.row)
    found = {}
    for name in table.table.columns:
        hint = hints.get(name, float | None)  # a column of `scores`
        optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
        kind = next(part for part in typing.get_args(hint) if part is not type(None)) if optional else hint
        found[name] = (kind, optional)
    return found


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InvalidInput(
            "Parquet files need pyarrow, which is not installed", hint="`pip install pyarrow`, or take --format csv"
        ) from None
    return pyarrow, parquet
