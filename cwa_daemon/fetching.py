"""The files of a finished run, brought from the daemon's machine to this one in pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from cwa_daemon.protocol import PIECE_BYTES
from cwa_engine.errors import RunFailed
from cwa_engine.reporting.output import MANIFEST

SCRATCH = "cwtool-fetch-"  # begin of the temporary folder of a client that fetches a run; its process id follows
Ask = Callable[..., Awaitable[dict[str, Any]]]


async def manifest(run_id: str, ask: Ask) -> dict[str, Any]:
    """The manifest of a finished run. Raises NotFound."""
    return dict(json.loads(b"".join([piece async for piece in _pieces(run_id, MANIFEST, ask)])))


async def download(run_id: str, folder: Path, ask: Ask) -> str:
    """Write every file of a finished run into an empty folder; gives the whole run id.

    Raises NotFound, OSError, and RunFailed for a table that is not the one that the run wrote.
    """
    listed = await ask("files", run_id=run_id)
    whole_id = str(listed["run_id"])
    hashes = {}
    for name in listed["files"]:
        digest = hashlib.sha256()
        with (folder / name).open("xb") as file:
            async for piece in _pieces(whole_id, name, ask):
                file.write(piece)
                digest.update(piece)
        hashes[name] = digest.hexdigest()
    for name, sha256 in json.loads((folder / MANIFEST).read_bytes())["tables"].items():
        if hashes.get(name) != sha256:
            raise RunFailed(f"{name} of {whole_id} is not as the run wrote it", hint="`cwtool rerun` repeats the run")
    return whole_id


async def _pieces(run_id: str, name: str, ask: Ask) -> AsyncIterator[bytes]:
    offset, last = 0, False
    while not last:
        reply = await ask("file", run_id=run_id, name=name, offset=offset)
        run_id = reply["run_id"]  # "latest" may be another one in a moment
        offset += len(reply["data"])
        last = len(reply["data"]) < PIECE_BYTES
        yield reply["data"]
