"""Every error a user can meet. Each has a message (what happened), a hint (what to do next) and a code of its own.

CwaError                      exit 1
├── InvalidInput              2    a request that makes no sense: unknown metric, --topk 0
│   ├── NotGreeted            2    the daemon does not know this connection: it restarted
│   ├── DataError             2    texts that cannot be scored
│   └── OutputError           2    a folder that cannot be written
│       ├── OutputTaken       2    a folder that holds something else
│       └── CopyPending       2    the files of a run that is done are not there yet
├── NotFound                  6    no such run, no such warm model
│   └── ModelNotFound         6
├── Altered                   1    a file of a run is not what the run wrote
├── ModelGated                4    the licence must be accepted first
├── ModelBroken               1    files that are not a complete model
├── OutOfMemory               7
│   └── DoesNotFit            7    refused before loading: larger than the free memory
├── RunFailed                 1
│   ├── WeightsNotRestored    1    an edit could not be verified or undone
│   └── WorkerDied            1    the computing process ended
├── Cancelled                 9
├── DaemonUnreachable         3
│   ├── NoDaemon              3    no daemon runs
│   ├── DaemonNotStartable    3
│   └── ClusterUnreachable    3    no Ray is reached, or none of its actors can be used
├── StateNotWritten           1    the disk of the state folder is full or broken
│   └── StateDamaged          1    the job database cannot be read any more
├── UploadFailed              1    the Hub did not take a bundle; the file is written
├── TrackingFailed            1    a tracker did not take a run; the run is saved
├── Refused                   4    this client may not use this daemon
├── UnsafePlace               4    a file, folder or socket that another user could have made
├── VersionMismatch           5
├── QueueFull                 8
└── WaitTimedOut            124
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CwaError(Exception):
    """Base of all errors: `str(error)` is what happened, `hint` is the next step, `code` travels on the wire."""

    code = "error"
    exit_code = 1
    retryable = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, object]:
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}


class InvalidInput(CwaError):
    code, exit_code = "invalid_input", 2
    field = ""  # of the spec, where one field alone is wrong; a form shows the message there


class NotGreeted(InvalidInput):
    code, retryable = "not_greeted", True


class DataError(InvalidInput):
    code = "data"


class OutputError(InvalidInput):
    code = "output"


class OutputTaken(OutputError):
    code = "output_taken"


class CopyPending(OutputError):
    code, retryable = "copy_pending", True


class NotFound(CwaError):
    code, exit_code = "not_found", 6


class ModelNotFound(NotFound):
    code = "model_not_found"


class Altered(CwaError):
    code = "altered"


class ModelGated(CwaError):
    code, exit_code = "model_gated", 4


class ModelBroken(CwaError):
    code = "model_broken"


class OutOfMemory(CwaError):
    code, exit_code = "out_of_memory", 7


class DoesNotFit(OutOfMemory):
    code, retryable = "does_not_fit", True


class RunFailed(CwaError):
    code = "run_failed"


class WeightsNotRestored(RunFailed):
    code = "weights_not_restored"


class WorkerDied(RunFailed):
    code, retryable = "worker_died", True


class Cancelled(CwaError):
    code, exit_code = "cancelled", 9


class DaemonUnreachable(CwaError):
    code, exit_code, retryable = "daemon_unreachable", 3, True


class NoDaemon(DaemonUnreachable):
    code = "no_daemon"


class DaemonNotStartable(DaemonUnreachable):
    code, retryable = "daemon_not_startable", False


class ClusterUnreachable(DaemonUnreachable):
    code, retryable = "cluster_unreachable", False


class StateNotWritten(CwaError):
    code, retryable = "state_not_written", True


class StateDamaged(StateNotWritten):
    code, retryable = "state_damaged", False


class UploadFailed(CwaError):
    code = "upload_failed"


class TrackingFailed(CwaError):
    code = "tracking_failed"


class Refused(CwaError):
    code, exit_code = "refused", 4


class UnsafePlace(CwaError):
    code, exit_code = "unsafe_place", 4


class VersionMismatch(CwaError):
    code, exit_code = "version_mismatch", 5


class QueueFull(CwaError):
    code, exit_code, retryable = "queue_full", 8, True


class WaitTimedOut(CwaError):
    code, exit_code, retryable = "wait_timed_out", 124, True


def _kinds(kind: type[CwaError]) -> Iterable[type[CwaError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def error_from_dict(body: dict[str, object]) -> CwaError:
    """The error that `CwaError.to_dict` described; a code this version does not know becomes a plain `CwaError`."""
    code = body.get("code")
    kind = next((kind for kind in _kinds(CwaError) if kind.code == code), CwaError)
    return kind(str(body.get("message", "")), str(body.get("hint", "")))


def near_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Known names that look like `name`, best first; compares whole names and their last part after '/'."""
    by_lower: dict[str, str] = {}
    for candidate in known:
        by_lower.setdefault(candidate.lower(), candidate)
        by_lower.setdefault(candidate.lower().rpartition("/")[2], candidate)
    matches = difflib.get_close_matches(name.lower(), by_lower, n=limit * 2, cutoff=0.6)
    matches += difflib.get_close_matches(name.lower().rpartition("/")[2], by_lower, n=limit * 2, cutoff=0.6)
    matches += [known for known in by_lower if name and name.lower() in known]
    return list(dict.fromkeys(by_lower[match] for match in matches))[:limit]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x' or 'y'?`, or the empty string where nothing is near."""
    near = [f"'{candidate}'" for candidate in near_names(name, known)]
    if not near:
        return ""
    return "did you mean " + (f"{', '.join(near[:-1])} or {near[-1]}" if len(near) > 1 else near[0]) + "?"
