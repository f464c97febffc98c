"""What clients are shown: jobs, the daemon, warm models, workers and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from cwa_daemon.protocol.message import Message
from cwa_daemon.protocol.states import TERMINAL_STATES, JobState
from cwa_engine.base.devices import is_device, memory_of
from cwa_engine.base.plain import JsonMap


class View(Message):
    """What clients are shown. A field that an older client does not know is left out where it has its default value."""

    model_config = ConfigDict(extra="ignore", defer_build=True)  # what a newer daemon shows beside

    def shown(self, minor: int) -> JsonMap:
        """The view for a client of this minor version."""
        unknown = (_SINCE_4 if minor < 4 else set()) | (_SINCE_5 if minor < 5 else set())
        unknown |= _SINCE_6 if minor < 6 else set()
        return self.model_dump(exclude_defaults=True, exclude=unknown)


# Clients before minor 4 refuse a view with fields that they do not know; later ones have no use for them.
_SINCE_4 = {"owner", "copy_error", "deaths", "troubles", "limits", "settings"}
_SINCE_5 = {"worked_s", "running_since", "headline", "waits_for", "jobs_version"}
_SINCE_6 = {"tags", "note"}


class StageProgress(Message):
    stage: str
    done: int
    total: int
    unit: str

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> StageProgress:
        """How far a stage is, by an event of kind "progress"."""
        return cls(**{name: event[name] for name in cls.model_fields})


class Headline(Message):
    """What a run has found, in short: of its first metric, the largest critical set that was compared with controls."""

    model_config = ConfigDict(extra="ignore", defer_build=True)  # as of a view

    metric: str
    k: int
    perturbation: str
    ratio: float | None = None  # damaged over intact perplexity; None where that is no finite number
    control_ratio: float | None = None  # the same for the draw of a control that changes the loss most
    control_collapsed: bool = False  # whether a draw of a control made the model collapse
    collapsed: bool = False  # whether the damaged model's outputs are not finite any more
    outcome: str = ""  # as in `rows.Verdict`; empty where it was not compared
    sentence: str = ""  # the verdict


class JobView(View):
    """A job as clients see it. Times are seconds since the epoch."""

    run_id: str
    kind: str
    state: str
    model: str
    spec: JsonMap
    device: str  # its lane; while it waits for one of several, what was asked for
    created: float
    started: float | None = None
    finished: float | None = None
    error: JsonMap | None = None
    retry_of: str | None = None
    priority: int = 0
    after: str | None = None  # run id of the job that must be done before
    progress: StageProgress | None = None
    folder: str | None = None  # where the files are, once the run is done
    last_seq: int = 0
    copy_error: JsonMap | None = None  # why the files of a run that is done are not in its output folder
    deaths: list[JsonMap] = Field(default_factory=list)  # of workers under this job: reason, cause, stage, time
    owner: str = ""  # name of the key that submitted it; empty for the user of the daemon's machine
    worked_s: float = 0.0  # that a worker was at it, in all attempts that have ended
    running_since: float | None = None  # when the attempt began that goes on: it has worked `worked_s` and since then
    headline: Headline | None = None  # of a run that is done
    waits_for: str = ""  # what it waits for, in words; empty for nothing
    tags: list[str] = Field(default_factory=list)  # that users gave it
    note: str = ""  # that a user wrote to it

    @model_validator(mode="after")
    def _as_an_older_daemon_knows_it(self) -> JobView:
        """Before minor 5 a daemon tells when a job began and ended, and not how long a worker was at it."""
        if self.started is not None and "worked_s" not in self.model_fields_set:
            if self.finished is not None:
                self.worked_s = max(0.0, self.finished - self.started)
            elif self.state == JobState.RUNNING and self.running_since is None:
                self.running_since = self.started
        return self

    def took_s(self, now: float) -> float:
        """Seconds that a worker was at it until now."""
        return self.worked_s + (max(0.0, now - self.running_since) if self.running_since is not None else 0.0)

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def copying(self) -> bool:
        """Whether the files are being copied to the output folder, or will be once there is room."""
        return bool(self.copy_error and self.copy_error["retryable"])


def is_last(event: Mapping[str, Any]) -> bool:
    """Whether nothing follows an event of a job: it has ended, and its files are copied where that was asked for."""
    if event["kind"] == "state":
        return event["state"] in TERMINAL_STATES and not event.get("output")
    return bool(event["kind"] == "copied")


class Pruned(Message):
    """What was removed, or would be: jobs without a result, finished runs (or only their events), and how many events."""

    jobs: list[str]
    runs: list[str]
    events: int


class WarmModel(Message):
    """A model held in memory by a worker."""

    name: str
    revision: str | None = None
    dtype: str
    device: str
    parameters: int
    size_bytes: int
    loaded: float
    last_used: float
    jobs_served: int
    expires: float | None = None  # None: never by itself
    pinned: bool = False
    in_use: bool = False


class WorkerView(Message):
    """A lane and its worker, which may not have been started."""

    device: str
    pid: int | None
    state: str
    run_id: str | None = None
    memory_bytes: int | None = None


class DeviceMemory(Message):
    """A device now. `others_bytes` is what processes that are not the daemon's use; None where a figure is not to be had."""

    device: str
    total_bytes: int
    used_bytes: int
    others_bytes: int | None = None
    utilisation: float | None = None  # 0 to 1
    temperature_c: float | None = None


class Sample(Message):
    """Telemetry at one moment."""

    time: float
    devices: list[DeviceMemory]
    processes_bytes: int  # resident memory of the daemon and its workers


class StatusView(View):
    """The daemon now. Jobs are None where the job database cannot be read; `troubles` are sentences."""

    version: str
    pid: int
    uptime_s: float
    home: str
    queued: int | None
    running: int | None
    paused: int | None = 0
    disk_full: bool = False
    troubles: list[str] = Field(default_factory=list)
    limits: dict[str, float | None] = Field(default_factory=dict)  # of a stage in seconds, of a load in bytes
    settings: dict[str, str] = Field(default_factory=dict)  # that it started with, see `base.in_force`
    versions: dict[str, str] = Field(default_factory=dict)  # of the libraries that the workers use
    models: list[WarmModel]
    workers: list[WorkerView]
    devices: list[DeviceMemory]
    memory_bytes: int
    jobs_version: int = 0  # grows with every change of a job or of its progress; 0 by an older daemon

    @property
    def lanes(self) -> list[WorkerView]:
        """Those on which jobs compute; not where plans are made or models are downloaded.

        A device that a run named, and this machine does not have, is none.
        """
        here = {device.device for device in self.devices}
        lanes = [worker for worker in self.workers if is_device(worker.device)]
        return [lane for lane in lanes if lane.pid or here.issuperset(memory_of(lane.device))]
