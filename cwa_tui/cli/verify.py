"""`cwtool verify`: where the files of a run are, and what their verification found, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from cwa_daemon.client import Client
from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import fetch_folder, user_path
from cwa_engine.records.checksums import MANIFEST, SUMS
from cwa_engine.records.verification import Verification, verify
from cwa_engine.rows import to_plain
from cwa_tui.visible import words

MOST_SHOWN = 30  # disagreements; --json has all


def verified(run: str, fingerprint: str | None, connect: Callable[[], AbstractContextManager[Client]]) -> Verification:
    """Verify a folder, or a run that a daemon knows; of another machine a copy of its files. Raises NotFound."""
    if fingerprint is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", fingerprint):
        raise InvalidInput(
            "--fingerprint is no SHA-256", hint=f"64 hexadecimal digits, as `sha256sum {SUMS}` gives them"
        )
    given = fingerprint and fingerprint.lower()
    folder = user_path(run, "the run")
    if "/" in run or (folder / MANIFEST).is_file():
        return verify(folder, given)
    with connect() as client:
        if not client.host:
            files = client.check(run)
            return verify(files.folder, given or files.fingerprint)
        with fetch_folder() as scratch:
            run_id, known = client.download(run, Path(scratch))
            return replace(verify(Path(scratch), given or known), folder=f"{client.host}:{run_id}")


def as_plain(found: Verification) -> dict[str, Any]:
    """The same for JSON."""
    return {"agrees": found.agrees, **to_plain(found)}


def found_in_words(found: Verification) -> Text:
    """What was verified, what does not agree, and what the files do not tell."""
    return words("\n".join(_lines(found)), overflow="fold")


def _lines(found: Verification) -> Iterator[str]:
    yield f"{found.run_id}, written by cwtool {found.version}"
    check = found.check
    yield f"{len(check.sound)} files are as the run wrote them"
    for name, what in check.altered.items():
        yield f"ALTERED: {name} is {what}"
    if check.unchecked:
        yield f"of {', '.join(check.unchecked)} nothing says what the run wrote: an earlier version kept no hash"
    if check.fingerprint:
        outside = (
            "as the job database or you have it" if check.known and SUMS not in check.altered else "of these files"
        )
        yield f"fingerprint {check.fingerprint}, {outside}"
    yield f"{found.compared:,} figures were compared with what the tables give, {len(found.disagreements)} disagree"
    for entry in found.disagreements[:MOST_SHOWN]:
        yield f"DISAGREES: {entry.where}: it says {entry.said}, recomputed {entry.found}"
    if len(found.disagreements) > MOST_SHOWN:
        yield f"and {len(found.disagreements) - MOST_SHOWN} more; --json has all"
    for reason in found.unreadable:
        yield f"CANNOT BE READ: {reason}"
    yield from (f"not told by the files: {what}" for what in found.unknown)
    yield f"{found.run_id} is {'sound as far as its files tell' if found.agrees else 'NOT sound'}"
