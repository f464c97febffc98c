"""Guessing the format of a file from its first bytes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence

from cwa_engine.data.columns import usual_column
from cwa_engine.data.json_texts import is_cut, parse_json
from cwa_engine.data.tables import delimiter_of
from cwa_engine.data.textfile import PIECE_BYTES, encoding_of

JSON_LINES, JSON, CSV, PARQUET, ARROW = "JSON lines", "JSON", "CSV", "Parquet", "Arrow"  # formats that are read
TABLE, MARKUP = "a table without known column names", "XML or HTML"

_BINARY = (  # (first bytes, the kind of file that begins with them)
    (b"PAR1", PARQUET),
    (b"ARROW1", ARROW),
    (b"PK\x03\x04", "a zip archive, or a document or spreadsheet, which are archives"),
    (b"%PDF", "a PDF document"),
    (b"{\\rtf", "a document"),
    (b"\xd0\xcf\x11\xe0", "a document or spreadsheet"),
    (b"7z\xbc\xaf", "an archive"),
    (b"Rar!", "an archive"),
    (b"\x1f\x8b", "compressed twice"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"SQLite format 3\0", "a database"),
    (b"\x93NUMPY", "an array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"Obj\x01", "an Avro table"),
    (b"ORC", "an ORC table"),
    (b"FEA1", "a Feather table of the first version"),
    (b"GGUF", "a model"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_MARKUP_START = re.compile(r"\s*<(\?xml|!DOCTYPE|[A-Za-z][\w:.-]*[\s>/])", re.IGNORECASE)
_LEAST_ROWS = 5  # lines with equally many cells count as a table from this many on
_LONG_HEADER = 60  # characters; a name of a column is shorter


def binary_kind(head: bytes) -> str | None:
    """The kind of a binary file; None if it may be text."""
    if head[257:262] == b"ustar":
        return "a tar archive"
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        return "a pickle"
    return next((kind for start, kind in _BINARY if head.startswith(start)), None)


def looks_like(head: bytes, column: str | None) -> str | None:
    """The format of structured data that a text file may hold, by its first piece; None for plain text.

    `column` is the column that the user asked for.
    """
    text = re.sub(r"\r\n?", "\n", head.decode(encoding_of(head), "replace"))
    whole = len(head) < PIECE_BYTES
    lines = [line for line in text.split("\n")[: None if whole else -1] if line.strip()]
    if _MARKUP_START.match(text) and ("</" in text or "/>" in text):
        return MARKUP
    if text.lstrip()[:1] in ("{", "["):
        return _json_kind(text, lines, whole)
    return _table_kind(lines, column)


def _json_kind(text: str, lines: Sequence[str], whole: bool) -> str | None:
    if lines and all(isinstance(_parsed(line), dict) for line in lines[:2]):
        return JSON_LINES
    at = 0
    while rest := text[at:].lstrip():
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError as error:
            return JSON if is_cut(error, rest) and not whole else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, (dict, list)):
            return None
        at = len(text) - len(rest) + end
    return JSON


def _parsed(line: str) -> object:
    try:
        return parse_json(line)
    except (ValueError, RecursionError):
        return None


def _table_kind(lines: Sequence[str], column: str | None) -> str | None:
    if len(lines) < 2:
        return None
    delimiter = delimiter_of(lines[0], ",;\t|")
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return None
    header = [name.strip() for name in rows[0]]
    if len(header) < 2 or any(len(row) != len(header) for row in rows[:-1]):  # the last row may be cut short
        return None
    if all(header) and max(map(len, header)) < _LONG_HEADER and (column in header or usual_column(header)):
        return CSV
    prose = delimiter == "," and len(header) == 2  # a verse may have one comma in each line
    return TABLE if len(rows) >= _LEAST_ROWS and not prose else None
