"""Texts of tables: CSV and TSV with a line of column names, Parquet, and Arrow files."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from cwa_engine.base.errors import DataError
from cwa_engine.data import textfile
from cwa_engine.data.columns import cell_texts, choose_column
from cwa_engine.data.textfile import TextFile, import_pyarrow, seekable, text_lines

BATCH_ROWS = 1000  # rows of a Parquet file that are read at once

Cells = Iterator[tuple[str, object]]  # (place for messages, value)


def csv_texts(file: TextFile) -> Iterator[str]:
    """The texts of a CSV file. The delimiter is a comma, semicolon, tab or bar, as in the line of column names."""
    return cell_texts(file.name, _csv_cells(file, ",;\t|"), file.tally)


def tsv_texts(file: TextFile) -> Iterator[str]:
    return cell_texts(file.name, _csv_cells(file, "\t"), file.tally)


def parquet_texts(file: TextFile) -> Iterator[str]:
    return cell_texts(file.name, _arrow_cells(file, _parquet_batches), file.tally)


def arrow_texts(file: TextFile) -> Iterator[str]:
    """The texts of an Arrow file or stream, as `datasets` and Feather write them."""
    return cell_texts(file.name, _arrow_cells(file, _arrow_batches), file.tally)


def delimiter_of(line: str, delimiters: str) -> str:
    """The delimiter that divides a line of column names into the most cells; the first of `delimiters` if none does."""
    return max(delimiters, key=lambda delimiter: len(next(csv.reader([line], delimiter=delimiter), [])))


def _csv_cells(file: TextFile, delimiters: str) -> Cells:
    lines = text_lines(file)
    first = next((line for line in lines if line.strip()), "")
    csv.field_size_limit(textfile.MOST_CHARACTERS)
    ended = (f"{line}\n" for line in itertools.chain([first], lines))
    reader = csv.reader(ended, delimiter=delimiter_of(first, delimiters), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            return
        column = _csv_column(file, header)
        line = reader.line_num + 1
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(
                    f"line {line} of {file.name} has {len(row)} cells, its line of names has {len(header)}",
                    hint='put a cell that has the delimiter or a line end into quotes: "one, two"',
                )
            if row:
                yield f"'{header[column]}' in line {line}", row[column]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {file.name} cannot be read: {error}",
            hint='double a quote within a cell: "she said ""no"""; .jsonl needs no such rule',
        ) from error


def _csv_column(file: TextFile, header: list[str]) -> int:
    """The index of the column of texts in a row.

    Its name must be usual or asked for. An only column is not enough: in a file without column names the first line is a
    text.
    """
    try:
        column = choose_column(file.name, header, header, file.column, file.say, accept_only_column=False)
    except DataError as error:
        names = "the first line names the columns, like id,text"
        raise DataError(error.message, hint=f"{error.hint}; {names}" if error.hint else names) from None
    return header.index(column)


def _arrow_cells(file: TextFile, batches: Callable[[TextFile], Iterator[Any]]) -> Cells:
    pyarrow = import_pyarrow(f"to read {file.name}")
    row = 0
    try:
        for batch in batches(file):
            (column,) = batch.schema.names
            for cell in batch.column(0).to_pylist():
                row += 1
                yield f"'{column}' in row {row}", cell
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise DataError(f"{file.name} is damaged after row {row}: {reason}", hint="download it again") from error


def _parquet_batches(file: TextFile) -> Iterator[Any]:
    """Batches of the column of texts alone."""
    table = import_pyarrow("", "pyarrow.parquet").ParquetFile(seekable(file))
    column = _arrow_column(file, table.schema_arrow)
    yield from table.iter_batches(BATCH_ROWS, columns=[column])


def _arrow_batches(file: TextFile) -> Iterator[Any]:
    pyarrow = import_pyarrow("")
    if file.head.startswith(b"ARROW1"):
        table = pyarrow.ipc.open_file(seekable(file))
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        batches = table = pyarrow.ipc.open_stream(seekable(file))
    column = _arrow_column(file, table.schema)
    for batch in batches:
        yield batch.select([column])


def _arrow_column(file: TextFile, schema: Any) -> str:
    is_text = import_pyarrow("").types
    kinds = (is_text.is_string, is_text.is_large_string, is_text.is_string_view)

    def textual(kind: Any) -> bool:
        return textual(kind.value_type) if is_text.is_dictionary(kind) else any(check(kind) for check in kinds)

    columns = [field.name for field in schema if textual(field.type)]
    return choose_column(file.name, schema.names, columns, file.column, file.say)
