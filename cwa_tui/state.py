"""What is on screen: one frozen slice for each pane. The session writes the store, screens read it. No Textual in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath

from cwa_daemon.protocol import JobView, StatusView, WarmModel
from cwa_engine.base.errors import CwaError
from cwa_engine.rows import GIVEN
from cwa_tui.followed_run import FollowedRun

MOST_RUNS = 20  # followed runs that are kept, so that one selected again is shown at once


class ConnectionState(StrEnum):
    """Whether the daemon is there."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Connection:
    """Whether the daemon can be reached, and why not."""

    state: ConnectionState = ConnectionState.CONNECTING
    trouble: CwaError | None = None


@dataclass(frozen=True, slots=True)
class JobList:
    """The daemon's jobs, the latest first, and the run id of the selected one."""

    jobs: tuple[JobView, ...] = ()
    selected: str | None = None

    @property
    def job(self) -> JobView | None:
        """The selected job; None where it is not listed, as a moment after its submission."""
        return next((job for job in self.jobs if job.run_id == self.selected), None)


def with_jobs(job_list: JobList, jobs: Sequence[JobView]) -> JobList:
    """The list as the daemon gave it. A selected run stays selected until it is not listed any more."""
    was_listed = job_list.job is not None  # a run submitted a moment ago is not listed yet, and stays selected
    listed = replace(job_list, jobs=tuple(jobs))
    if listed.selected is None or (was_listed and listed.job is None):
        return replace(listed, selected=jobs[0].run_id if jobs else None)
    return listed


@dataclass(frozen=True, slots=True)
class AskedRun:
    """What a run was asked for, as far as the screen says it."""

    metrics: tuple[str, ...]
    gives_weights: bool  # by name; they are a ranking of their own
    perturbations: tuple[str, ...]
    topk: tuple[int, ...]
    texts: str
    text_limit: int | None
    fast: bool
    measures_damage: bool


def asked_run(job: JobView) -> AskedRun | None:
    """What the spec of a job says; None for a job that only loads or plans."""
    if job.kind != "run":
        return None
    spec = job.spec
    file = PurePath(spec["data_file"]).name if spec["data_file"] else None
    return AskedRun(
        metrics=tuple(spec["metrics"]),
        gives_weights=bool(spec["weights"]),
        perturbations=tuple(spec["perturbations"]),
        topk=tuple(spec["topk"]),
        texts=spec.get("data_name") or spec.get("dataset") or file or "built-in texts",
        text_limit=spec["eval_limit"],
        fast=spec["fast_perturbation"],
        measures_damage=bool(spec["perturbations"] or spec["dose"] or spec["position_test"]),
    )


@dataclass(frozen=True, slots=True)
class SelectedRun:
    """The selected job: as the daemon lists it, what it was asked for, and what its events said so far."""

    run: FollowedRun
    job: JobView | None = None
    asked: AskedRun | None = None

    @property
    def metrics(self) -> list[str]:
        """The rankings that were asked for, and those that the run made beside them."""
        asked = [*[GIVEN] * self.asked.gives_weights, *self.asked.metrics] if self.asked else []
        return [*asked, *(metric for metric in self.run.rankings if metric not in asked)]


class TuiStore:
    """The slices, as plain data. `version` grows with each change, so a screen knows when to look again."""

    def __init__(self) -> None:
        self.version = 0
        self.connection = Connection()
        self.job_list = JobList()
        self.daemon: StatusView | None = None
        self._runs: OrderedDict[str, FollowedRun] = OrderedDict()  # the run looked at last comes last

    def answered(self, jobs: Sequence[JobView], daemon: StatusView) -> None:
        """Take what the daemon answered."""
        self.connection = Connection(ConnectionState.CONNECTED)
        self.job_list, self.daemon = with_jobs(self.job_list, jobs), daemon
        self.version += 1

    def lost(self, error: CwaError) -> None:
        """Note that the daemon cannot be reached. Everything else stays."""
        self.connection = Connection(ConnectionState.LOST, error)
        self.version += 1

    def select(self, run_id: str) -> None:
        self.job_list = replace(self.job_list, selected=run_id)
        self.version += 1

    def change_run(self, run_id: str, change: Callable[[FollowedRun], FollowedRun]) -> None:
        """Replace a followed run by what `change` makes of it."""
        self._runs[run_id] = change(self.followed_run(run_id))
        self.version += 1

    def followed_run(self, run_id: str) -> FollowedRun:
        """The run as its events told it; an empty one if it was never followed, or too long ago."""
        run = self._runs.pop(run_id, None) or FollowedRun(run_id)
        self._runs[run_id] = run
        if len(self._runs) > MOST_RUNS:
            self._runs.popitem(last=False)
        return run

    @property
    def warm_models(self) -> list[WarmModel]:
        return self.daemon.models if self.daemon else []

    @property
    def selected_run(self) -> SelectedRun | None:
        if (run_id := self.job_list.selected) is None:
            return None
        job = self.job_list.job
        return SelectedRun(self.followed_run(run_id), job, asked_run(job) if job else None)
