"""Texts of JSON files: lines of objects or strings, an array of them, or an object that holds one such array."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from cwa_engine.base.errors import DataError
from cwa_engine.base.plain import JsonMap
from cwa_engine.data.columns import cell_texts, choose_column, usual_column
from cwa_engine.data.textfile import TextFile, check_length, text_lines, text_pieces

Row = tuple[str, Any]  # (its place for messages, such as "line 3"; its value)

_LINE_HINT = 'each line looks like {"text": "..."}'
_NEAR_THE_END = 16  # characters; the parser finds an error in truncated JSON this near the end


def json_line_texts(file: TextFile) -> Iterator[str]:
    """The texts of a file with an object or a string in each line."""
    return _row_texts(file, _line_rows(file))


def json_texts(file: TextFile) -> Iterator[str]:
    """The texts of a file with one array or object, or with several objects one after the other."""
    stream = _JsonStream(file)
    if stream.next_character() == "[":
        return _row_texts(file, _numbered(stream.array_items()))
    values = stream.values()
    first = list(itertools.islice(values, 2))
    if len(first) == 1 and isinstance(first[0], dict):
        return _row_texts(file, _rows_of_object(file, first[0]))
    return _row_texts(file, _numbered(itertools.chain(first, values)))


def parse_json(text: str) -> Any:
    """Parse one JSON value. Raises ValueError for invalid JSON or a repeated key, RecursionError for one nested too deep."""
    return _DECODER.decode(text)


def is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the error may come only from `text` being cut off at its end."""
    return error.msg.startswith("Unterminated") or error.pos > len(text) - _NEAR_THE_END


def _line_rows(file: TextFile) -> Iterator[Row]:
    for number, line in enumerate(text_lines(file), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", parse_json(line)
        except (ValueError, RecursionError) as error:
            hint = _LINE_HINT
            if number == 1 and line.lstrip()[0] in "[{":
                hint = f"{hint}; if it is one JSON value over several lines, rename it to .json"
            raise DataError(f"line {number} of {file.name} is not JSON: {_reason(error)}", hint=hint) from error


def _rows_of_object(file: TextFile, value: JsonMap) -> Iterator[Row]:
    """The rows of an object: itself if it has a text, else the items of its array; of several, the one with a usual name."""
    texts = [key for key, entry in value.items() if isinstance(entry, str)]
    lists = [key for key, entry in value.items() if isinstance(entry, list)]
    arrays = [key for key in lists if value[key] and all(isinstance(item, (str, dict)) for item in value[key])]
    is_row = file.column in texts or (file.column is None and usual_column(texts))
    if is_row or not arrays:
        return iter([("item 1", value)])
    if file.column in arrays:
        key, file.column = file.column, None
    elif len(lists) == 1:
        key = arrays[0]
    else:
        key = choose_column(file.name, list(value), arrays, None, file.say, accept_only_column=False)
    file.say(f"the texts of {file.name} are the items of '{key}'")
    return ((f"item {number} of '{key}'", item) for number, item in enumerate(value[key], start=1))


def _row_texts(file: TextFile, rows: Iterable[Row]) -> Iterator[str]:
    return cell_texts(file.name, _cells(file, rows), file.tally)


def _cells(file: TextFile, rows: Iterable[Row]) -> Iterator[Row]:
    column = None
    for where, row in rows:
        if isinstance(row, dict):
            column = column or _column(file, row)
            if column not in row:
                raise DataError(f"{where} of {file.name} has no '{column}', but: {', '.join(row)}", hint=_LINE_HINT)
            yield f"'{column}' in {where}", row[column]
        elif file.column is not None:
            raise DataError(f"{where} of {file.name} has no '{file.column}': it is not an object", hint=_LINE_HINT)
        else:
            yield where, row


def _column(file: TextFile, row: dict[str, object]) -> str:
    textual = [key for key, value in row.items() if value is None or isinstance(value, str)]
    misused = usual_column(list(row))
    if misused and not file.column and not usual_column(textual):
        return misused  # the reader of cells then reports what it holds instead of a text
    return choose_column(file.name, list(row), textual, file.column, file.say)


def _numbered(items: Iterable[Any]) -> Iterator[Row]:
    return ((f"item {number}", item) for number, item in enumerate(items, start=1))


class _JsonStream:
    """JSON values of a file. It is read only as far as the caller asks for values."""

    def __init__(self, file: TextFile) -> None:
        self._name = file.name
        self._pieces = text_pieces(file)
        self._buffer = ""
        self._at = 0  # characters of the buffer that were consumed
        self._line = 1  # line of the file at which the buffer begins

    def next_character(self) -> str:
        """The next character that is not a space, without consuming it; the empty string at the end of the file."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it always matches
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._read_more():
                return ""

    def values(self) -> Iterator[Any]:
        """All values up to the end of the file."""
        while self.next_character():
            yield self._value()

    def array_items(self) -> Iterator[Any]:
        """The items of the array that begins here. Raises DataError if anything follows the array."""
        self._take("[")
        ended = self.next_character() == "]"
        while not ended:
            yield self._value()
            ended = self.next_character() == "]"
            if not ended:
                self._take(",")
        self._take("]")
        if self.next_character():
            raise self._error("something follows after the array", self._at)

    def _take(self, character: str) -> None:
        if self.next_character() != character:
            raise self._error(f"Expecting '{character}'", self._at)
        self._at += 1

    def _value(self) -> Any:
        self.next_character()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if not (is_cut(error, self._buffer) and self._read_more()):
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._error(_reason(error), self._at) from error
            else:
                return value

    def _read_more(self) -> bool:
        """Drop the consumed part and double the rest, so that parsing a long value again costs at most twice its length."""
        self._line += self._buffer.count("\n", 0, self._at)
        parts, self._at = [self._buffer[self._at :]], 0
        wanted, read = max(1, len(parts[0])), 0
        while read < wanted and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            read += len(piece)
        self._buffer = "".join(parts)
        check_length(len(self._buffer), self._name)
        return read > 0

    def _error(self, reason: str, position: int) -> DataError:
        line = self._line + self._buffer.count("\n", 0, position)
        return DataError(
            f"{self._name} is not valid JSON: line {line}: {reason}", hint="correct it, or write it as .jsonl"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key '{twice}' twice")
    return found


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"{error.msg}, character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
_SPACE = re.compile(r"[ \t\n\r]*")
