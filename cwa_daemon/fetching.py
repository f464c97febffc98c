"""The files of a finished run, brought from the daemon's machine to this one in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from cwa_daemon.protocol import PIECE_BYTES
from cwa_engine.errors import VersionMismatch
from cwa_engine.reporting.checksums import MANIFEST, SUMS, Check, altered_error, check_run

SCRATCH = "cwtool-fetch-"  # begin of the temporary folder of a client that fetches a run; its process id follows
Ask = Callable[..., Awaitable[dict[str, Any]]]


async def manifest(run_id: str, ask: Ask) -> dict[str, Any]:
    """The manifest of a finished run. Raises NotFound, and Altered where it is not what the run wrote."""
    listed = await ask("files", run_id=run_id)
    altered = listed.get("check", {}).get("altered", {})  # older daemons do not look
    if MANIFEST in altered or SUMS in altered:
        raise altered_error(listed["run_id"], altered)
    return dict(json.loads(b"".join([piece async for piece in _pieces(listed["run_id"], MANIFEST, ask)])))


async def download(run_id: str, folder: Path, ask: Ask) -> str:
    """Write every file of a finished run into an empty folder; gives the whole run id.

    Raises NotFound, OSError, and Altered for files that are not what the run wrote.
    """
    listed = await ask("files", run_id=run_id)
    whole_id = str(listed["run_id"])
    if altered := listed.get("check", {}).get("altered"):  # older daemons do not look
        raise altered_error(whole_id, altered)
    for name in listed["files"]:
        with (folder / name).open("xb") as file:
            async for piece in _pieces(whole_id, name, ask):
                file.write(piece)
    if altered := check_run(folder).altered:
        raise altered_error(whole_id, altered)
    return whole_id


async def check(run_id: str, ask: Ask) -> tuple[Path, Check]:
    """(folder there, its files beside what the run wrote). Raises NotFound, and VersionMismatch for an older daemon."""
    listed = await ask("files", run_id=run_id)
    if "check" not in listed:
        raise VersionMismatch(
            "the daemon is older than this client, and does not tell whether files are altered",
            hint="`cwtool daemon restart --when-idle`",
        )
    found = listed["check"]
    return Path(listed["folder"]), Check(**{**found, "unchecked": tuple(found["unchecked"])})


async def _pieces(run_id: str, name: str, ask: Ask) -> AsyncIterator[bytes]:
    offset, last = 0, False
    while not last:
        reply = await ask("file", run_id=run_id, name=name, offset=offset)
        run_id = reply["run_id"]  # "latest" may be another one in a moment
        offset += len(reply["data"])
        last = len(reply["data"]) < PIECE_BYTES
        yield reply["data"]
