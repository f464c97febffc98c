"""What is on screen: one frozen slice for each pane. The session writes the store, screens read it. No Textual in it."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath
from typing import TypeVar

from cwa_daemon.protocol import JobPage, JobQuery, JobView, Sample, StatusView, WarmModel
from cwa_engine.base.errors import CwaError, NoDaemon
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import GIVEN
from cwa_tui.store.followed_run import FollowedRun
from cwa_tui.store.studies import KnownStudy
from cwa_tui.tables.ranking import RankingRows

PAGE = 100  # jobs asked for at first; more as the user scrolls down
MOST_RUNS = 20  # followed runs that are kept, so that one selected again is shown at once
MOST_RANKED = 500_000  # weights of all rankings that are kept, 60 bytes each
HISTORY = 600  # samples of telemetry, one a second: what the widest chart shows

K = TypeVar("K")
V = TypeVar("V")


class ConnectionState(StrEnum):
    """Whether the daemon is there."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Connection:
    """Whether the daemon can be reached, and why not. `starting` while one is being started at the user's wish."""

    state: ConnectionState = ConnectionState.CONNECTING
    trouble: CwaError | None = None
    starting: bool = False

    @property
    def can_be_started(self) -> bool:
        """Whether there is no daemon, so that one can be started. One that hangs, or runs elsewhere, cannot."""
        return self.state is ConnectionState.LOST and isinstance(self.trouble, NoDaemon)


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs as the query has them, from place `offset` on, how many there are in all, and the run id of the selected one."""

    jobs: tuple[JobView, ...] = ()
    selected: str | None = None
    total: int = 0
    offset: int = 0

    @property
    def job(self) -> JobView | None:
        """The selected job; None where it is not listed, as a moment after its submission."""
        return next((job for job in self.jobs if job.run_id == self.selected), None)


def with_jobs(job_list: JobList, page: JobPage, offset: int) -> JobList:
    """The list as the daemon gave it. What is selected stays so, listed or not: its page may have gone out of sight."""
    selected = job_list.selected or (page.jobs[0].run_id if page.jobs else None)
    return JobList(tuple(page.jobs), selected, page.total, offset)


@dataclass(frozen=True, slots=True)
class AskedRun:
    """What a run was asked for, as far as the screen says it."""

    metrics: tuple[str, ...]
    gives_weights: bool  # by name; they are a ranking of their own
    perturbations: tuple[str, ...]
    controls: tuple[str, ...]
    topk: tuple[int, ...]
    texts: str
    text_limit: int | None
    fast: bool
    measures_damage: bool


def asked_run(job: JobView) -> AskedRun | None:
    """What the spec of a job says; None for a job that is no run."""
    if job.kind != "run":
        return None
    spec = job.spec
    file = PurePath(spec["data_file"]).name if spec["data_file"] else None
    return AskedRun(
        metrics=tuple(spec["metrics"]),
        gives_weights=bool(spec["weights"]),
        perturbations=tuple(spec["perturbations"]),
        controls=tuple(spec["controls"]),
        topk=tuple(spec["topk"]),
        texts=spec.get("data_name") or spec.get("dataset") or file or "built-in texts",
        text_limit=spec["eval_limit"],
        fast=spec["fast_perturbation"],
        measures_damage=bool(spec["perturbations"] or spec["dose"] or spec["position_test"]),
    )


@dataclass(frozen=True, slots=True)
class SelectedRun:
    """A job: as the daemon lists it, what it was asked for, what its events said so far, and its report once it is done."""

    run: FollowedRun
    job: JobView | None = None
    asked: AskedRun | None = None
    report: RunReport | None = None

    @property
    def metrics(self) -> list[str]:
        """The rankings that were asked for, and those that the run made beside them."""
        asked = [*[GIVEN] * self.asked.gives_weights, *self.asked.metrics] if self.asked else []
        made = [*self.run.rankings, *(self.report.metrics if self.report else ())]
        return list(dict.fromkeys([*asked, *made]))


class TuiStore:
    """The slices, as plain data. `version` grows with each change, so a screen knows when to look again."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.version = 0
        self.connection = Connection()
        self.query = JobQuery(limit=PAGE, kinds=("run",))
        self.job_list = JobList()
        self.active = JobPage((), 0)  # jobs of every kind that wait or run, the oldest first
        self.daemon: StatusView | None = None
        self.history: deque[Sample] = deque(maxlen=HISTORY)
        self.answered_at: float | None = None  # seconds since the epoch; what is shown is as it was then
        self.listings = 0  # how often the daemon listed its jobs, which it does when they have changed
        self.studies: tuple[KnownStudy, ...] | None = None  # the latest first; None until they are read
        self._clock = clock
        self._jobs: dict[str, JobView] = {}  # all that the daemon told of, listed now or not
        self._runs: OrderedDict[str, FollowedRun] = OrderedDict()  # the run looked at last comes last
        self._reports: OrderedDict[str, RunReport] = OrderedDict()
        self._rankings: OrderedDict[tuple[str, str], RankingRows] = OrderedDict()
        self._why_no_report: dict[str, CwaError] = {}

    def now(self) -> float:
        """Seconds since the epoch. The clock stands still while the daemon is lost, so that nothing seems to go on."""
        if self.connection.state is ConnectionState.LOST and self.answered_at is not None:
            return self.answered_at
        return self._clock()

    # what the daemon said

    def answered(self, daemon: StatusView, samples: Sequence[Sample] = ()) -> None:
        """Keep what the daemon told of itself."""
        self.connection = Connection(ConnectionState.CONNECTED)
        self.daemon, self.answered_at = daemon, self._clock()
        self.history.extend(samples)
        self.version += 1

    def listed(self, page: JobPage, offset: int, active: JobPage) -> None:
        """Keep the jobs that the query asked for, from place `offset` on, and those that wait or run."""
        self.job_list = with_jobs(self.job_list, page, offset)
        self.active = active
        self._jobs |= {job.run_id: job for job in (*page.jobs, *active.jobs)}
        self.listings += 1
        self.version += 1

    def know_job(self, job: JobView) -> None:
        """Keep one job, whether the list has it or not."""
        self._jobs[job.run_id] = job
        self.version += 1

    def lost(self, error: CwaError) -> None:
        """Note that the daemon cannot be reached. Everything else stays as it was known last."""
        self.connection = Connection(ConnectionState.LOST, error, self.connection.starting)
        self.version += 1

    def is_starting(self, starting: bool) -> None:
        self.connection = replace(self.connection, starting=starting)
        self.version += 1

    # what the user chose

    def select(self, run_id: str) -> None:
        self.job_list = replace(self.job_list, selected=run_id)
        self.version += 1

    def ask(self, query: JobQuery) -> None:
        self.query = query
        self.version += 1

    # runs

    def job(self, run_id: str) -> JobView | None:
        """A job as the daemon told of it last."""
        return self._jobs.get(run_id)

    def change_run(self, run_id: str, change: Callable[[FollowedRun], FollowedRun]) -> None:
        """Replace a followed run by what `change` makes of it."""
        self._runs[run_id] = change(self.followed_run(run_id))
        self.version += 1

    def followed_run(self, run_id: str) -> FollowedRun:
        """The run as its events told it; an empty one if it was never followed, or too long ago."""
        run = self._runs.pop(run_id, None) or FollowedRun(run_id)
        _keep(self._runs, run_id, run, MOST_RUNS)
        return run

    def keep_report(self, report: RunReport) -> None:
        _keep(self._reports, report.run_id, report, MOST_RUNS)
        self.version += 1

    def has_no_report(self, run_id: str, why: CwaError) -> None:
        """Note why a run's files cannot be read."""
        self._why_no_report[run_id] = why
        self.version += 1

    def report(self, run_id: str) -> RunReport | None:
        return self._reports.get(run_id)

    def why_no_report(self, run_id: str) -> CwaError | None:
        return None if run_id in self._reports else self._why_no_report.get(run_id)

    def keep_ranking(self, run_id: str, metric: str, rows: RankingRows) -> None:
        self._rankings[run_id, metric] = rows
        self._rankings.move_to_end((run_id, metric))
        while len(self._rankings) > 1 and sum(map(len, self._rankings.values())) > MOST_RANKED:
            self._rankings.popitem(last=False)
        self.version += 1

    def ranking(self, run_id: str, metric: str) -> RankingRows | None:
        """The whole ranking of a finished run; None until it is here."""
        if (run_id, metric) in self._rankings:
            self._rankings.move_to_end((run_id, metric))  # the one looked at last is forgotten last
        return self._rankings.get((run_id, metric))

    def run(self, run_id: str) -> SelectedRun:
        """All that is known of a run."""
        job = self.job(run_id)
        return SelectedRun(self.followed_run(run_id), job, asked_run(job) if job else None, self.report(run_id))

    # studies

    def know_studies(self, studies: Sequence[KnownStudy]) -> None:
        """Keep what is known of all studies, the latest first."""
        if tuple(studies) != self.studies:
            self.studies = tuple(studies)
            self.version += 1

    def study(self, study_id: str) -> KnownStudy | None:
        return next((study for study in self.studies or () if study.id == study_id), None)

    @property
    def warm_models(self) -> list[WarmModel]:
        return self.daemon.models if self.daemon else []


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put a value last, and forget the first where there are too many."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
