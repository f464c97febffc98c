"""The format of a file of texts, by its ending, or by its content if it has no ending. Other formats are refused.

To add a format, add one entry to `FORMATS` with the function that reads it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from cwa_engine.base.errors import DataError
from cwa_engine.base.events import Emit, ignore
from cwa_engine.data import content
from cwa_engine.data.columns import Tally
from cwa_engine.data.json_texts import json_line_texts, json_texts
from cwa_engine.data.passages import code_chunks, passages
from cwa_engine.data.tables import arrow_texts, csv_texts, parquet_texts, tsv_texts
from cwa_engine.data.textfile import TextFile, unpack


@dataclass(frozen=True, slots=True)
class Format:
    """A format of texts: `endings` are separated by spaces, the usual one first; `read` gives the texts."""

    name: str
    endings: str
    read: Callable[[TextFile], Iterator[str]]
    has_columns: bool = True

    @property
    def usual_ending(self) -> str:
        return f".{self.endings.split()[0]}"


TEXT = Format("text", "txt text md markdown rst adoc org", passages, has_columns=False)
CODE = Format(
    "source code",
    "py ada asm awk bash bat bib c cc cfg cjs clj cls cmake cmd cob coffee conf cpp cr cs css cu cuh cxx d dart diff el elm "
    "erl ex exs f f03 f08 f77 f90 f95 fish for frag fs fsx glsl go gradle graphql groovy h hcl hh hlsl hpp hs htm html hxx "
    "ini inl ino ipp java jl js jsx kt kts less lisp lua m mak metal mjs mk ml mli mm nim nix pas patch php pl pm proto ps1 "
    "pxd pyi pyx r rb rkt rs s sass scala scm scss sh sol sql st sty sv svelte swift tcl tex tf thrift ts tsx v vb vert "
    "vhd vhdl vim vue wgsl zig zsh",
    code_chunks,
    has_columns=False,
)
FORMATS = (
    TEXT,
    CODE,
    Format(content.JSON_LINES, "jsonl ndjson jsonlines", json_line_texts),
    Format(content.JSON, "json", json_texts),
    Format(content.CSV, "csv", csv_texts),
    Format("TSV", "tsv tab", tsv_texts),
    Format(content.PARQUET, "parquet pq", parquet_texts),
    Format(content.ARROW, "arrow feather", arrow_texts),
)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

_AS_IT_STANDS = "write its texts as .jsonl; to score the file's characters unchanged, rename it to .txt"
_REFUSED = (  # (endings, kind of file, what to do instead)
    ("xlsx xlsm xls ods numbers", "a spreadsheet", "save the sheet as .csv"),
    ("docx doc odt pdf rtf epub pages pptx ppt", "a document", "save it as plain text, .txt"),
    ("zip tar tgz tbz tbz2 txz 7z rar jar whl iso", "an archive", "unpack it, and give one of its files"),
    ("lz4 lzma lz lzo br z sz", "compressed in an unknown way", "`... | cwtool run --data-file -` reads a pipe"),
    ("pkl pickle joblib pt pth ckpt npy npz h5 hdf5 mat rds rdata dta sav", "no text", "write its texts as .jsonl"),
    ("safetensors gguf onnx bin", "no text", "weights are given by --model; texts as .txt or .jsonl"),
    ("db sqlite sqlite3 duckdb mdb", "a database", "export its texts as .csv or .jsonl"),
    ("avro orc", "a table of an unknown format", "write it as .parquet or .jsonl"),
    ("ipynb", "a notebook", f"`jupyter nbconvert --to script` takes its code out; or {_AS_IT_STANDS}"),
    ("xml svg rss yaml yml toml plist", "structured data", _AS_IT_STANDS),
)


def read_texts(
    file: io.BufferedReader[Any],
    name: str,
    column: str | None = None,
    emit: Emit = ignore,
    tally: Tally | None = None,
) -> Iterator[str]:
    """The texts of an open file, one by one. The file is read only as far as the caller iterates.

    `name` gives the format, and names the file in messages. `column` is the column of texts of a table or of JSON
    objects; None means the usual one. `emit` gets a note if the format was not obvious. `tally` counts rows.

    Raises DataError if this is not a file of texts.
    """
    opened = unpack(file, name)
    opened.column, opened.emit, opened.tally = column, emit, tally or Tally()
    form = _format_of(opened)
    if column is not None and not form.has_columns:
        raise DataError(f"{name} is read as {form.name}, which has no columns", hint="leave out --text-column")
    yield from form.read(opened)


def _format_of(file: TextFile) -> Format:
    ending = _ending(file.name)
    by_ending = next((form for form in FORMATS if ending in form.endings.split()), None)
    if not by_ending:
        _refuse_ending(file.name, ending)
    if kind := content.binary_kind(file.head):
        return _binary_format(file, by_ending, kind)
    looks = None if by_ending and by_ending is not TEXT else content.looks_like(file.head, file.column)
    by_content = next((form for form in FORMATS if form.name == looks), None)
    if by_ending:
        if looks:
            advice = f": rename it to {by_content.usual_ending} to read the texts in it" if by_content else ""
            file.say(f"{file.name} is read as text, but looks like {looks}{advice}", "warning")
        return by_ending
    if not ending:
        form = by_content or TEXT
        doubt = f", though it looks like {looks}" if looks and not by_content else ""
        file.say(f"{file.name} is read as {form.name}, by its content{doubt}", "warning" if doubt else "info")
        return form
    if looks:
        endings = f"rename it to {by_content.usual_ending}" if by_content else "write its texts as .jsonl"
        raise DataError(
            f"{file.name} looks like {looks}, and its ending '.{ending}' is not known",
            hint=f"{endings}; to score the file's characters unchanged, rename it to .txt",
        )
    file.say(f"the ending of {file.name} is not known: it is read as source code, in chunks of paragraphs", "warning")
    return CODE


def _ending(name: str) -> str:
    """The ending in lower case without its dot, not counting the ending of a compression; empty if there is none."""
    path = PurePath(name.lower())
    ending = PurePath(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    return ending.removeprefix(".")


def _refuse_ending(name: str, ending: str) -> None:
    for endings, kind, hint in _REFUSED:
        if ending in endings.split():
            raise DataError(f"{name} is {kind}", hint=hint)


def _binary_format(file: TextFile, by_ending: Format | None, kind: str) -> Format:
    """The format of a binary file. Raises DataError if it is not read here, or contradicts the file's ending."""
    form = next((form for form in FORMATS if form.name == kind), None)
    if form and (form is by_ending or not _ending(file.name)):
        if form is not by_ending:
            file.say(f"{file.name} is read as {form.name}, by its content")
        return form
    hint = f"rename it to {form.usual_ending}" if form else "give texts as .txt, .jsonl, .csv or .parquet"
    raise DataError(f"{file.name} is binary: it looks like {kind}", hint=hint)
