"""Texts that the daemon cannot open itself: what comes out of a pipe, and, when it runs on another machine, all of this one.

The client copies them into a file without a name, as far as they are used, and hands that over in pieces.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import stat
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from cwa_daemon.protocol import MOST_NAME, PIECE_BYTES
from cwa_engine.base.errors import DataError
from cwa_engine.base.plain import JsonMap
from cwa_engine.data import textfile
from cwa_engine.data.corpus import file_texts, load_texts
from cwa_engine.data.datasets import parse_dataset
from cwa_engine.spec import RunSpec

T = TypeVar("T")

CHECKED_TEXTS = 100  # what is wrong with the first ones is said at once, with all others when the run reads them
FINISH_S = 120.0  # for the daemon to write the last piece, read the whole file and check it
STDIN = Path("/dev/stdin")


@dataclass(frozen=True)
class Handover:
    """A copy of texts that the daemon is to keep; `send` closes it."""

    file: IO[bytes]
    sha256: str
    size_bytes: int
    name: str  # that the file shall have
    shown: str  # as the user knows it
    text_column: str | None = None


def prepare(spec: RunSpec, to_another_machine: bool, most_bytes: int) -> Handover | None:
    """Check a run's texts, and copy those that must be handed over; None where the daemon reads the file itself.

    A pipe is read to its end, or until `spec.eval_limit` texts have come. Raises DataError for what holds no text, and for
    more than `most_bytes`.
    """
    path = spec.data_file
    if to_another_machine and spec.dataset and parse_dataset(spec.dataset).path.startswith("/"):
        return _dataset_folder(spec, spec.dataset, most_bytes)
    if path is None:
        return None
    checked = min(spec.eval_limit or CHECKED_TEXTS, CHECKED_TEXTS)
    lasting = _is_lasting(path)
    if lasting and not to_another_machine:
        load_texts(path, checked, column=spec.text_column, name=spec.data_name)
        return None
    shown = "standard input" if path == STDIN else f"pipe {path}" if path.is_fifo() else str(path)
    with textfile.open_regular(path) if lasting else _open_pipe(path, shown) as source:
        copying = _Copying(source, shown, most_bytes)
        with io.BufferedReader(copying, textfile.PIECE_BYTES) as file:
            file_texts(file, shown, spec.eval_limit or checked, spec.text_column)
            while spec.eval_limit is None and file.read(PIECE_BYTES):
                pass
    name = "standard-input" if path == STDIN else path.name.encode()[-MOST_NAME:].decode(errors="ignore")
    return Handover(copying.copy, copying.digest.hexdigest(), copying.size_bytes, name, shown, spec.text_column)


def _dataset_folder(spec: RunSpec, dataset: str, most_bytes: int) -> Handover:
    """The texts of a dataset that is a folder here, as JSON lines."""
    copying = _Copying(None, dataset, most_bytes)
    for text in load_texts(None, spec.eval_limit, dataset, spec.text_column):
        copying.keep(memoryview(json.dumps({"text": text.content}).encode() + b"\n"))
    return Handover(copying.copy, copying.digest.hexdigest(), copying.size_bytes, "dataset.jsonl", dataset)


async def send(handover: Handover, ask: Callable[..., Awaitable[JsonMap]]) -> Path:
    """Hand a copy over by requests that `ask` sends; gives where the daemon keeps it. Only what it lacks is sent."""
    about = {"name": handover.name, "sha256": handover.sha256, "size_bytes": handover.size_bytes}
    here, data = 0, b""
    with handover.file as file:
        while True:
            reply = await ask("keep_texts", timeout_s=FINISH_S, offset=here, data=data, **about)
            if reply["path"]:
                return Path(reply["path"])
            here = reply["here"]
            file.seek(here)
            data = file.read(PIECE_BYTES)


def _is_lasting(path: Path) -> bool:
    """Whether a path means the same to another process and later: no pipe, and no open file of this process."""
    if path == STDIN or path.is_relative_to("/dev/fd") or path.is_relative_to("/proc"):
        return False
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # whoever opens it says what is wrong with it
    return not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))


def _open_pipe(path: Path, shown: str) -> IO[bytes]:
    """Not by `sys.stdin`, whose lock a thread that waits for a pipe would hold when the program ends."""
    if path == STDIN and sys.stdin is None:  # its number may be another open file's by now
        raise DataError("standard input is closed", hint="give a pipe or a file")
    try:
        return open(os.dup(0) if path == STDIN else path, "rb", buffering=0)  # noqa: PTH123  # of a number as well
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror}", hint="give a pipe or a file") from error


class _Copying(io.RawIOBase):
    """What is read of a source, with a copy of it."""

    def __init__(self, source: Any, name: str, most_bytes: int) -> None:
        import tempfile  # most clients have no pipe to read, and need not wait for it

        self.copy = tempfile.TemporaryFile()  # noqa: SIM115  # `send` closes it
        self._folder = tempfile.gettempdir()
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self._source = source
        self._name = name
        self._most_bytes = most_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, so that its reader sees the end of the source only where there is nothing at all."""
        view = memoryview(buffer)
        read = 0
        while read < len(view):
            count = self._source.readinto(view[read:])
            if count is None:  # another process has made it one that does not wait
                select.select([self._source], [], [])
            elif count == 0:
                break
            else:
                read += count
        self.keep(view[:read])
        return read

    def keep(self, piece: memoryview) -> None:
        """Copy what was read. Raises DataError where it is too much, or where the disk is full."""
        self.size_bytes += len(piece)
        if self.size_bytes > self._most_bytes:
            raise DataError(
                f"{self._name} has more than {self._most_bytes / 1e9:g} GB",
                hint="--eval-limit reads only the first texts; CWTOOL_TEXTS_GB raises the limit",
            )
        self.digest.update(piece)
        try:
            self.copy.write(piece)
        except OSError as error:
            raise DataError(
                f"{self._name} cannot be copied to {self._folder}: {error.strerror}",
                hint="make room there, or set TMPDIR to another folder",
            ) from error
