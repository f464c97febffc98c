"""Files of a finished run, each compared with what the run wrote and with what its daemon knows of it."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cwa_daemon.client.fetching import Ask, pieces
from cwa_engine.base.errors import InvalidInput, NotFound
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.checksums import MANIFEST, SUMS, WrittenHashes, written_hashes

if TYPE_CHECKING:
    from cwa_engine.records.run_report import RunReport

_LARGE = ("topk_*.csv", "evaluation.csv")  # tables that a report reads when they are asked for


@dataclass(frozen=True)
class RunReader:
    """The files of a run, read from its daemon."""

    run_id: str
    folder: Path  # on the daemon's machine
    fingerprint: str | None  # of the files as they are; None for a run of an early version
    _first: Mapping[str, bytes]  # what was read already: that by which the others are compared
    _written: WrittenHashes
    _ask: Ask

    async def read(self, name: str) -> bytes:
        """A file as the run wrote it. Raises NotFound and Altered."""
        content = self._first.get(name)
        if content is None:
            content, _ = await _read(self.run_id, name, self._ask)
        self._written.compare(name, content)
        return content


async def open_reader(run_id: str, ask: Ask) -> RunReader:
    """Raises NotFound for a run that is not finished, Altered where the list of its hashes is not what the run wrote."""
    name = SUMS
    try:
        content, reply = await _read(run_id, name, ask)
    except NotFound:  # a run of an early version has hashes in its manifest; else this says that there is no such run
        name = MANIFEST
        content, reply = await _read(run_id, name, ask)
    if "fingerprint" not in reply:  # an older daemon
        reply = {**reply, **await ask("files", run_id=reply["run_id"])}
    sums, manifest = (content, b"") if name == SUMS else (None, content)
    written = written_hashes(reply["run_id"], sums, manifest, reply.get("fingerprint"))
    fingerprint = None if sums is None else hashlib.sha256(sums).hexdigest()
    return RunReader(reply["run_id"], Path(reply["folder"]), fingerprint, {name: content}, written, ask)


async def _read(run_id: str, name: str, ask: Ask) -> tuple[bytes, JsonMap]:
    """(the content of a file, the first reply of the daemon)."""
    replies = [reply async for reply in pieces(run_id, name, ask)]
    return b"".join(reply["data"] for reply in replies), replies[0]


ReadMore = Callable[[RunReader, str], bytes]  # a run, and the name of one of its files -> its content


def refuse(reader: RunReader, name: str) -> bytes:
    """For those who cannot wait for a file in the middle of something else."""
    raise InvalidInput(
        f"{name} of {reader.run_id} may be large, and was not read with the report",
        hint=f'`await client.read_file("{reader.run_id}", "{name}")` reads it',
    )


@dataclass(frozen=True)
class PartlyRead:
    """The smaller files of a run, and a way to the others."""

    contents: Mapping[str, bytes]
    reader: RunReader
    read_more: ReadMore

    def read(self, name: str) -> bytes:
        content = self.contents.get(name)
        return self.read_more(self.reader, name) if content is None else content


async def report_of(reader: RunReader, read_more: ReadMore, folder: Path | None) -> RunReport:
    """The report of a run; `read_more` gives the tables that may be large, `folder` is that of a run on this machine."""
    from cwa_engine.records.run_report import LOG, SUMMARY, report_from  # here: few clients read whole runs

    manifest = await reader.read(MANIFEST)
    tables = [name for name in json.loads(manifest)["tables"] if not any(fnmatch.fnmatch(name, p) for p in _LARGE)]
    contents = {name: await reader.read(name) for name in (SUMMARY, LOG, *tables)}
    if reader.fingerprint:
        contents[SUMS] = await reader.read(SUMS)
    files = PartlyRead({MANIFEST: manifest, **contents}, reader, read_more)
    return report_from(files, reader.fingerprint, folder)
