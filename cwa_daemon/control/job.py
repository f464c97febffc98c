"""A job as the database has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cwa_daemon.pipe.place import WITHOUT_DEVICE
from cwa_daemon.protocol import JobOptions, JobState
from cwa_engine.base.plain import JsonMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row, as it was when it was read. Times are seconds since the epoch; what is JSON there are maps and lists here."""

    number: int  # gives the order of jobs, for clocks may be put back
    run_id: str
    kind: str  # one of `protocol.JobKind`
    state: JobState
    spec: JsonMap  # of a RunSpec
    command: str
    device: str  # its lane, or while it is queued and may run on several, what was asked for: see `LaneNames.kept_as`
    client_key: str
    retry_of: str | None
    created: float
    started: float | None
    finished: float | None
    error: JsonMap | None
    priority: int
    after_run: str | None  # the run id of the job that must be done before
    passed_over: int  # how often a later job has gone before
    options: JsonMap  # of JobOptions without priority and after, and `access`, how its shell reaches the Hub
    owner: str
    deaths: list[JsonMap]  # of workers under it, see `deaths.py`
    copy_error: JsonMap | None
    worked_s: float  # that a worker was at it, in all attempts that have ended
    headline: JsonMap | None  # of a `Headline`
    tags: list[str]  # in the database with spaces between them
    note: str

    @property
    def lane(self) -> str:
        """Where it runs, one job after the other: on its device, or where plans are made or models are downloaded."""
        return WITHOUT_DEVICE.get(self.kind, self.device)

    @property
    def asked(self) -> str:
        """The device that was asked for, which may leave a choice: auto, cpu."""
        return str(self.spec.get("device", self.device))

    @property
    def model(self) -> str:
        return str(self.spec["model"])

    @property
    def output(self) -> Path | None:
        """The folder that a run's files are copied to; None for what is no run, and where none was given."""
        return Path(self.spec["output"]) if self.kind == "run" and self.spec["output"] else None

    @property
    def access(self) -> JsonMap:
        return dict(self.options.get("access", {}))

    def run_options(self) -> JobOptions:
        """How it is to be run; a job of an earlier schema has no options, and takes the usual ones."""
        kept = {name: value for name, value in self.options.items() if name != "access"}
        return JobOptions(priority=self.priority, **kept)
