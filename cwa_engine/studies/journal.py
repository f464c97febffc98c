"""What was submitted for a study: lines of JSON that are appended and never changed. torch-free.

A line is flushed to disk before the submission that it tells of, and another one after it. A process that dies in between
leaves the first, with the key by which the runner gives the same run again. So several processes may go on with one study
at once, and after a death of anything nothing runs twice. A last line that is torn is ended by the next one; lines that
cannot be read are counted and stay where they are.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cwa_engine.base.errors import CwaError, OutputError, error_from_dict
from cwa_engine.base.plain import JsonMap
from cwa_engine.studies.identity import Identity, identity_from_plain


@dataclass(frozen=True, slots=True)
class Submission:
    """The latest submission of a cell."""

    cell: int
    attempt: int
    key: str
    identity: Identity
    run_id: str = ""  # empty while it is not known whether the submission arrived
    reused: bool = False  # whether the run was there before the study
    ended: str = ""  # "done", "failed" or "cancelled", once that was seen
    error: CwaError | None = None


@dataclass(frozen=True)
class Journal:
    """The file. `read` gives what it comes to; the other methods append to it, and raise OutputError if that fails."""

    path: Path

    def read(self) -> tuple[dict[int, Submission], int]:
        """The latest submission of each cell, and how many lines cannot be read."""
        found: dict[int, Submission] = {}
        damaged = 0
        for line in self._lines():
            try:
                _apply(found, json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += 1
        return found, damaged

    def first_times(self) -> dict[int, float]:
        """When each cell was first submitted, in seconds since the epoch."""
        found: dict[int, float] = {}
        for line in self._lines():
            try:
                entry = json.loads(line)
                cell, moment = int(entry["cell"]), float(entry["time"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            found[cell] = min(moment, found.get(cell, moment))
        return found

    def submitting(self, submission: Submission) -> None:
        fields = {"attempt": submission.attempt, "key": submission.key, "identity": asdict(submission.identity)}
        self._append({"event": "submitting", "cell": submission.cell, **fields})

    def submitted(self, submission: Submission) -> None:
        fields = {"key": submission.key, "run_id": submission.run_id, "reused": submission.reused}
        self._append({"event": "submitted", "cell": submission.cell, **fields})

    def ended(self, submissions: Sequence[Submission]) -> None:
        """Of several at once, as one flush to disk takes some milliseconds."""
        self._append(*({"event": "ended", "cell": each.cell, **_end(each)} for each in submissions))

    def _lines(self) -> Iterator[str]:
        try:
            content = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return iter(())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror}", hint="`chmod` it") from error
        return (line for line in content.split("\n") if line.strip())

    def _append(self, *entries: JsonMap) -> None:
        now = round(time.time(), 3)
        lines = b"".join(json.dumps({**entry, "time": now}).encode() + b"\n" for entry in entries)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                size = os.fstat(handle).st_size
                torn = size and os.pread(handle, 1, size - 1) != b"\n"  # what a process that died has left
                content = b"\n" * bool(torn) + lines
                if os.write(handle, content) < len(content):  # in one piece: others may append at the same time
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror}", hint="make room there, and resume the study"
            ) from error


def _end(submission: Submission) -> JsonMap:
    error = submission.error.to_dict() if submission.error else None
    return {"key": submission.key, "run_id": submission.run_id, "state": submission.ended, "error": error}


def _apply(found: dict[int, Submission], entry: JsonMap) -> None:
    """Raises ValueError, KeyError and TypeError for what is no entry."""
    cell, key, event = int(entry["cell"]), str(entry["key"]), entry["event"]
    known = found.get(cell)
    same = known is not None and known.key == key
    if event == "submitting":
        if not same:  # another process that asks for the same knows no more
            found[cell] = Submission(cell, int(entry["attempt"]), key, identity_from_plain(entry["identity"]))
    elif event == "submitted":
        if known and same:
            run_id = str(entry["run_id"])
            ended, error = (known.ended, known.error) if run_id == known.run_id else ("", None)
            found[cell] = replace(known, run_id=run_id, reused=bool(entry["reused"]), ended=ended, error=error)
    elif event == "ended":
        if known and same and known.run_id == entry["run_id"]:
            error = error_from_dict(entry["error"]) if entry.get("error") else None
            found[cell] = replace(known, ended=str(entry["state"]), error=error)
    else:
        raise ValueError(f"no event of a study: {event}")
