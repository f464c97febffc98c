"""The files of a finished run, brought from the daemon's machine to this one in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from cwa_daemon.protocol import PIECE_BYTES
from cwa_engine.base.errors import VersionMismatch
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.checksums import Check

Ask = Callable[..., Awaitable[JsonMap]]


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run on the daemon's machine."""

    run_id: str
    folder: Path  # there
    check: Check
    fingerprint: str | None  # as the job database has it


async def download(run_id: str, folder: Path, ask: Ask) -> tuple[str, str | None]:
    """Write every file of a finished run into an empty folder, altered ones too; gives the whole run id and its fingerprint.

    The fingerprint is that of the job database there, None where it has none. Raises NotFound and OSError.
    """
    listed = await ask("files", run_id=run_id)
    whole_id = str(listed["run_id"])
    for name in listed["files"]:
        with (folder / name).open("xb") as file:
            async for piece in pieces(whole_id, name, ask):
                file.write(piece["data"])
    return whole_id, listed.get("fingerprint")  # older daemons keep none


async def check(run_id: str, ask: Ask) -> RunFiles:
    """The files of a finished run as they are there. Raises NotFound, and VersionMismatch for an older daemon."""
    listed = await ask("files", run_id=run_id)
    if "check" not in listed:
        raise VersionMismatch(
            "the daemon is older than this client, and does not tell whether files are altered",
            hint="`cwtool daemon restart --when-idle`",
        )
    found = listed["check"]
    found = Check(**{**found, "unchecked": tuple(found["unchecked"]), "sound": tuple(found["sound"])})
    return RunFiles(str(listed["run_id"]), Path(listed["folder"]), found, listed["fingerprint"])


async def pieces(run_id: str, name: str, ask: Ask) -> AsyncIterator[JsonMap]:
    """The replies that have the pieces of a file as their `data`, in order. Raises NotFound."""
    offset, last = 0, False
    while not last:
        reply = await ask("file", run_id=run_id, name=name, offset=offset)
        run_id = reply["run_id"]  # "latest" may be another one in a moment
        offset += len(reply["data"])
        last = len(reply["data"]) < PIECE_BYTES
        yield reply
