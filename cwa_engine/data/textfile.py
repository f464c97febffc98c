"""A file of texts as Unicode: compression and encoding are told by its content, and every line ends with a LF."""

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

PIECE_BYTES = 2**16  # read at once; the format is told by the first piece
# A small compressed file may unfold to more than the memory holds.
MOST_CHARACTERS = 2**28  # of one line, passage or JSON value
MOST_BYTES = 2**31  # of a Parquet or Arrow file that comes packed or out of a pipe

_MARKS = (  # byte order marks; that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclass
class TextFile:
    """An open file of texts, unpacked, with what its reader is asked for and what it finds."""

    name: str  # for messages: "notes.txt", "standard input"
    stream: BinaryIO  # what follows `head`
    head: bytes  # the first piece
    packed: bool = False  # whether it was compressed
    column: str | None = None  # the one asked for
    emit: Emit = ignore
    tally: Tally = field(default_factory=Tally)

    def say(self, text: str, level: str = "info") -> None:
        self.emit(Note(text, level))


def open_regular(path: Path) -> io.BufferedReader[Any]:
    """Open a file that has bytes in it. Raises DataError for anything else: a pipe might be waited for without end."""
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
    """The file as its readers take it. Raises DataError for one that is damaged, or packed as nothing here can unpack."""
    start = _guarded(name, lambda: file.peek(8))
    opener = next((opener for magic, opener in _COMPRESSED.items() if start.startswith(magic)), None)
    stream = opener(file) if opener else file
    return TextFile(name, stream, _guarded(name, lambda: stream.read(PIECE_BYTES)), packed=opener is not None)


def byte_pieces(file: TextFile) -> Iterator[bytes]:
    """All its bytes. Raises DataError where the file is damaged."""
    piece = file.head
    while piece:
        yield piece
        piece = _guarded(file.name, lambda: file.stream.read(PIECE_BYTES))


def text_pieces(file: TextFile) -> Iterator[str]:
    """All its text. Raises DataError, with line and byte, for what is no text."""
    encoding = encoding_of(file.head)
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    line, byte = 1, 1  # numbers of those that come next
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
    """UTF-8, or what a byte order mark says."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), "utf-8")


def text_lines(file: TextFile) -> Iterator[str]:
    """Its lines, without their ends."""
    parts: list[str] = []  # of the line that has not ended yet
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
    """Raise DataError for a line, passage or JSON value that is longer than any should be."""
    if characters > MOST_CHARACTERS:
        raise DataError(
            f"{name} has a line, passage or JSON value of more than {MOST_CHARACTERS:,} characters",
            hint="in a .txt a blank line ends a passage; JSON is best written as .jsonl, an object in each line",
        )


def seekable(file: TextFile) -> BinaryIO:
    """The file from its beginning, for readers that jump about in it. Raises DataError for too large a packed one."""
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
    """The package, or DataError with what to install."""
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
    """What reading raises: each module that unpacks has its own way to say that a file is damaged."""
    import lzma
    import zlib

    return OSError, EOFError, ValueError, zlib.error, lzma.LZMAError


def _undecodable(file: TextFile, encoding: str, error: UnicodeDecodeError, line: int, byte_after: int) -> DataError:
    """`line` is where the piece began that failed, `byte_after` the number of the byte behind it."""
    good = error.object[: error.start].decode(error.encoding, "replace")
    line += len(re.findall(r"\r\n?|\n", good))
    byte = byte_after - len(error.object) + error.start
    return DataError(
        f"{file.name} is not {encoding.removesuffix('-sig').upper()}: "
        f"line {line}, byte {byte:,} of the file (0x{error.object[error.start]:02x})",
        hint=_encoding_hint(file),
    )


def _encoding_hint(file: TextFile) -> str:
    """What the encoding may be: in UTF-16 the letters of Latin scripts have a zero byte, always on the same side."""
    if 0 not in file.head:
        return "if it is Latin-1 or Windows-1252, `iconv -f WINDOWS-1252 -t UTF-8` converts it"
    for encoding, start in (("UTF-16LE", 1), ("UTF-16BE", 0)):
        high = file.head[start::2]
        if high.count(0) > len(high) // 2 and 0 not in file.head[1 - start :: 2]:
            return f"it may be {encoding} without a mark: `iconv -f {encoding} -t UTF-8` converts it"
    return "give texts as UTF-8"


def _open_zstd(file: BinaryIO) -> Any:
    """By the standard library, which can from Python 3.14 on, else by pyarrow."""
    try:
        return importlib.import_module("compression.zstd").open(file)
    except ImportError:
        return import_pyarrow("to read what zstd has compressed").CompressedInputStream(file, "zstd")


# By the first bytes of a file. A client that starts should not wait for modules that it may not need.
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: importlib.import_module("gzip").open(file),
    b"BZh": lambda file: importlib.import_module("bz2").open(file),
    b"\xfd7zXZ\0": lambda file: importlib.import_module("lzma").open(file),
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
