"""What a job says, read from the wire into types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cwa_engine.base.errors import CwaError, error_from_dict
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Event, describe


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The job's new state, and why it ended if it failed or was cancelled."""

    state: str
    error: CwaError | None = None


@dataclass(frozen=True, slots=True)
class OutputCopied:
    """The files of a run that is done were copied to its output folder, or could not be."""

    folder: str
    error: CwaError | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job: its number, its time in seconds since the epoch, and its line in a log if it is worth one.

    `what` is None for a kind of event that this version does not know.
    """

    seq: int
    time: float
    what: Event | StateChanged | OutputCopied | None
    line: str | None = None

    @property
    def error(self) -> CwaError | None:
        """Why the job did not end well, if this event says so."""
        return self.what.error if isinstance(self.what, (StateChanged, OutputCopied)) else None


def read_job_event(plain: Mapping[str, Any]) -> JobEvent:
    """An event as `Client.follow` gives it. Raises VersionMismatch for one of another version that cannot be read."""
    what: Event | StateChanged | OutputCopied | None
    match plain["kind"]:
        case "state":
            what = StateChanged(plain["state"], _error(plain))
        case "copied":
            what = OutputCopied(plain["folder"], _error(plain))
        case _:
            what = event_from_plain(plain)
    return JobEvent(plain["seq"], plain["time"], what, describe(plain))


def _error(plain: Mapping[str, Any]) -> CwaError | None:
    return error_from_dict(plain["error"]) if plain.get("error") else None
