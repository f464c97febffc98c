"""A file of texts as Unicode. Its content shows compression and encoding; every line ends with LF after decoding."""

from __future__ import annotations

import codecs
import importlib
import io
import itertools
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cwa_engine.base.errors import DataError
from cwa_engine.base.events import Emit, Note, ignore
from cwa_engine.base.files import near_files
from cwa_engine.data.columns import Tally

T = TypeVar("T")

PIECE_BYTES = 2**16  # bytes read at once; the format is guessed from the first piece
# Limits, because a small compressed file can unpack to more than the memory holds:
MOST_CHARACTERS = 2**28  # characters of one line, passage or JSON value
MOST_BYTES = 2**31  # bytes of a compressed or piped Parquet or Arrow file

_MARKS = (  # byte order marks; UTF-32 comes first, because its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclass
class TextFile:
    """An open, decompressed file of texts, with the column to read and the receivers of notes and counts."""

    name: str  # for messages: "notes.txt", "standard input"
    stream: BinaryIO  # the bytes after `head`
    head: bytes  # the first piece
    packed: bool = False  # whether it was compressed
    column: str | None = None  # the column that the user asked for
    emit: Emit = ignore
    tally: Tally = field(default_factory=Tally)

    def say(self, text: str, level: str = "info") -> None:
        self.emit(Note(text, level))


def open_regular(path: Path) -> io.BufferedReader[Any]:
    """Open a regular file. Raises DataError for anything else, such as a pipe, whose reader could wait without end."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError:
        raise DataError(f"data file {path} does not exist", hint=near_files(path)) from None
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror}", hint="check who may read it") from error
    if stat.S_ISDIR(mode):
        hint = f"give one of its files, or all of them by --dataset {path}"
        raise DataError(f"data file {path} is a folder", hint=hint)
    kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    raise DataError(f"data file {path} is a {kind}, not a file", hint="`... | cwtool run --data-file -` reads a pipe")


def unpack(file: io.BufferedReader[Any], name: str) -> TextFile:
    """Decompress a file if needed. Raises DataError if it is damaged or no installed package can decompress it."""
    start = _guarded(name, lambda: file.peek(8))
    opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
    stream = opener(file) if opener else file
    return TextFile(name, stream, _guarded(name, lambda: stream.read(PIECE_BYTES)), packed=opener is not None)


def byte_pieces(file: TextFile) -> Iterator[bytes]:
    """All bytes of a file, in pieces. Raises DataError if the file is damaged."""
    piece = file.head
    while piece:
        yield piece
        piece = _guarded(file.name, lambda: file.stream.read(PIECE_BYTES))


def text_pieces(file: TextFile) -> Iterator[str]:
    """The whole text of a file, in pieces. Raises DataError, with line and byte, if it is not text."""
    encoding = encoding_of(file.head)
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    line, byte = 1, 1  # of the next character
    for raw in itertools.chain(byte_pieces(file), [b""]):
        byte += len(raw)
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise _undecodable(file, encoding, error, line, byte) from error
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            raise DataError(f"{file.name} is binary: there is a NUL in line {line}", hint=_encoding_hint(file))
        yield text
        line += text.count("\n")


def encoding_of(head: bytes) -> str:
    """The encoding of a byte order mark; UTF-8 without one."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")


def text_lines(file: TextFile) -> Iterator[str]:
    """The lines of a file, without line ends."""
    parts: list[str] = []  # of the current line
    length = 0
    for piece in text_pieces(file):
        first, *others = piece.split("\n")
        parts.append(first)
        length += len(first)
        if others:
            yield "".join(parts)
            yield from others[:-1]
            parts, length = [others[-1]], len(others[-1])
        check_length(length, file.name)
    if length:
        yield "".join(parts)


def check_length(characters: int, name: str) -> None:
    """Raises DataError for a line, passage or JSON value of more than MOST_CHARACTERS."""
    if characters > MOST_CHARACTERS:
        raise DataError(
            f"{name} has a line, passage or JSON value of more than {MOST_CHARACTERS:,} characters",
            hint="end passages of a .txt with a blank line; write JSON as .jsonl, one object in each line",
        )


def seekable(file: TextFile) -> BinaryIO:
    """The file from its beginning, for readers that seek. Raises DataError if a compressed file is too large for this."""
    if not file.packed and file.stream.seekable():
        file.stream.seek(0)
        return file.stream
    content = io.BytesIO()
    for piece in byte_pieces(file):
        if content.tell() + len(piece) > MOST_BYTES:
            raise DataError(f"{file.name} has more than {MOST_BYTES:,} bytes", hint="unpack it, and give it as a file")
        content.write(piece)
    content.seek(0)
    return content


def import_pyarrow(what_for: str, module: str = "pyarrow") -> Any:
    """Import pyarrow. Raises DataError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{what_for} the package pyarrow is needed", hint="pip install 'cwtool[eval]'") from error


def _guarded(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except _reading_errors() as error:
        raise DataError(f"{name} cannot be read: {error}", hint="it may be damaged or cut short") from error


def _reading_errors() -> tuple[type[Exception], ...]:
    """The errors of a damaged file: each decompressing module has its own."""
    import lzma
    import zlib

    return OSError, EOFError, ValueError, zlib.error, lzma.LZMAError


def _undecodable(file: TextFile, encoding: str, error: UnicodeDecodeError, line: int, byte_after: int) -> DataError:
    """The error for bytes that are not text. The failing piece began in `line`, and ends before byte `byte_after`."""
    good = error.object[: error.start].decode(error.encoding, "replace")
    line += len(re.findall(r"\r\n?|\n", good))
    byte = byte_after - len(error.object) + error.start
    return DataError(
        f"{file.name} is not {encoding.removesuffix('-sig').upper()}: "
        f"line {line}, byte {byte:,} of the file (0x{error.object[error.start]:02x})",
        hint=_encoding_hint(file),
    )


def _encoding_hint(file: TextFile) -> str:
    """A guess of the encoding. In UTF-16 every Latin letter has a zero byte, always on the same side."""
    if 0 not in file.head:
        return "if it is Latin-1 or Windows-1252, `iconv -f WINDOWS-1252 -t UTF-8` converts it"
    for encoding, start in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        high = file.head[start::2]
        if high.count(0) > len(high) // 2 and 0 not in file.head[1 - start :: 2]:
            return f"it may be {encoding} without a mark: `iconv -f {encoding} -t UTF-8` converts it"
    return "give texts as UTF-8"


def _open_zstd(file: BinaryIO) -> Any:
    """Decompress with the standard library from Python 3.14 on, else with pyarrow."""
    try:
        return importlib.import_module("compression.zstd").open(file)
    except ImportError:
        return import_pyarrow("to read zstd").CompressedInputStream(file, "zstd")


# Openers by the first bytes of a file. They import their modules when called, so that clients start fast.
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: importlib.import_module("gzip").open(file),
    b"BZh": lambda file: importlib.import_module("bz2").open(file),
    b"\xfd7zXZ\0": lambda file: importlib.import_module("lzma").open(file),
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
