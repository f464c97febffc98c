"""Keeps the studies in the store up to date while a screen shows them, and starts, resumes and cancels them.

Study folders are read and answers are computed in threads. Nothing is done while neither the daemon's jobs nor a study
folder has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from cwa_daemon.protocol import JobPage, JobQuery, JobView
from cwa_engine.base.errors import CwaError, DaemonUnreachable, DataError, InvalidInput, QueueFull
from cwa_engine.base.places import state_folder
from cwa_engine.named_runners import named_at
from cwa_engine.records.run_summary import RunSummary
from cwa_engine.runner import Runner, RunState
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress, progress_of
from cwa_engine.studies.registration import surely_first
from cwa_engine.studies.report import StudyReport, study_report
from cwa_engine.studies.running import cancel_study, run_study
from cwa_engine.studies.study import Study
from cwa_tui.store.state import TuiStore
from cwa_tui.store.studies import KnownStudy
from cwa_tui.store.study_runner import RunnerOfStudies
from cwa_tui.store.study_stages import StagesFollowed
from cwa_tui.tables.study import Stage

ACTIVE = JobQuery(limit=1000, states=("queued", "paused", "running"), kinds=("run",), descending=False)
NAMED_S = 2.0  # between two looks at studies that another process runs, on Ray: no list of jobs tells of their runs
SHARE = 0.03  # of the time, which the answers of a study that goes on may take to compute


class Lists(Protocol):
    """A client, as far as it lists jobs."""

    async def list_jobs(self, query: JobQuery | None = ...) -> JobPage: ...


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer, of which runs, and how long it took to compute."""

    runs: frozenset[str]
    complete: bool
    answer: Answer | None
    why_not: str
    at: float
    took_s: float


@dataclass
class StudyWatch:
    """`complain` is called with errors that are of no study."""

    store: TuiStore
    poll_s: float
    runner: Callable[[], Runner]  # of the daemon that the session is connected to; raises DaemonUnreachable
    complain: Callable[[Exception], None] = lambda error: None
    _watched: dict[object, str] = field(default_factory=dict)  # by who watches: the study that is open, or ""
    _look: asyncio.Event = field(default_factory=asyncio.Event)
    _folders: dict[str, StudyFolder] = field(default_factory=dict)
    _journals: dict[str, int] = field(default_factory=dict)  # when each was written, in ns
    _listed: int = -1  # when the folder of studies changed, in ns
    _ended: dict[str, RunState] = field(default_factory=dict)
    _summaries: dict[str, RunSummary] = field(default_factory=dict)
    _unread: dict[str, CwaError] = field(default_factory=dict)
    _answers: dict[str, _Answered] = field(default_factory=dict)
    _answering: set[str] = field(default_factory=set)
    _computing: asyncio.Task[None] | None = None  # a task that nobody holds may vanish
    _damaged: list[DataError] = field(default_factory=list)
    _complaint: str = ""
    _submitting: dict[str, RunnerOfStudies] = field(default_factory=dict)
    _named: dict[str, RunnerOfStudies] = field(default_factory=dict)  # by where runs are: those of runners with a name
    _followed: dict[str, StagesFollowed] = field(default_factory=dict)  # the same
    _begun: dict[str, int] = field(default_factory=dict)  # studies that go on from here -> cells when all had ended

    def watch(self, who: object, study_id: str = "") -> None:
        """Keep the studies up to date for a screen; of the one that it shows, also what its runs found."""
        self._watched[who] = study_id
        self._look.set()

    def unwatch(self, who: object) -> None:
        self._watched.pop(who, None)

    async def keep_up(self, client: Lists) -> None:
        """Look at the studies again and again, for ever, while somebody watches."""
        seen: object = None
        while True:
            if self._watched:
                try:
                    await asyncio.to_thread(self._find_folders)
                    now = (dict(self._journals), self.store.listings, frozenset(self._watched.values()), self._moment())
                    if now != seen:
                        await self._read(client)
                        seen = now
                    self._answer()
                    self._ask_further()
                    if self._damaged:
                        raise self._damaged[0]
                except DaemonUnreachable:
                    pass  # polling fails as well, says so, and connects again
                except Exception as error:
                    if str(error) != self._complaint:  # the same again with each look would cover everything else
                        self._complaint = str(error)
                        self.complain(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll_s if self._watched else None):
                    await self._look.wait()
            self._look.clear()

    # reading

    def _find_folders(self) -> None:
        """Read the folders that are new, and look which studies have gone on."""
        root = state_folder() / "studies"
        if (listed := _changed(root)) != self._listed:
            self._listed = listed
            found, damaged = StudyFolder.all_and_damaged()
            self._folders = {folder.id: self._folders.get(folder.id, folder) for folder in found}
            self._damaged = damaged
        self._journals = {key: _changed(folder.path / "journal.jsonl") for key, folder in self._folders.items()}

    async def _read(self, client: Lists) -> None:
        """Have the store know how far each study is, and what the runs of those that are open found."""
        page = await client.list_jobs(ACTIVE)
        daemon = self._runner(page.jobs)
        named = {
            folder.id: self._runner_of(folder) for folder in self._folders.values()
        }  # here, beside the running loop
        known = {study.id: study for study in self.store.studies or ()}

        def read(folder: StudyFolder) -> KnownStudy:
            before = known.get(folder.id)
            if before and before.complete and before.journal == self._journals[folder.id]:
                return before
            runner = named[folder.id]
            progress = progress_of(folder, runner or daemon)
            return KnownStudy(
                folder.id, folder.study, folder.created, self._journals[folder.id], progress,
                is_registered=surely_first(folder), on=_on(folder),
                stages=self._stages(folder.where, progress) if runner else {},
            )  # fmt: skip

        folders = [folder for folder in self._folders.values() if folder.where == daemon.where or named[folder.id]]
        studies = await asyncio.to_thread(lambda: [read(folder) for folder in folders])
        self.store.know_studies([self._with_findings(study) for study in studies])
        for study in studies:
            if study.id in self._watched.values():
                await self._read_runs(named[study.id] or daemon, study)
        self.store.know_studies([self._with_findings(study) for study in studies])

    async def _read_runs(self, runner: RunnerOfStudies, study: KnownStudy) -> None:
        """What the done runs of a study found, each once."""

        def read(run_id: str) -> None:
            try:
                self._summaries[run_id] = runner.attach(run_id).report().summary
            except DaemonUnreachable:
                raise
            except CwaError as error:  # altered, removed, of an early version
                self._unread[run_id] = error

        for run_id in sorted(study.done_runs - self._summaries.keys() - self._unread.keys()):
            await asyncio.to_thread(read, run_id)

    def _with_findings(self, study: KnownStudy) -> KnownStudy:
        answered = self._answers.get(study.id)
        runs = study.done_runs
        return replace(
            study,
            summaries={run_id: self._summaries[run_id] for run_id in runs if run_id in self._summaries},
            progress=tuple(
                replace(entry, state="failed", error=self._unread[entry.run_id])
                if entry.state == "done" and entry.run_id in self._unread
                else entry
                for entry in study.progress
            ),
            answer=answered.answer if answered else None,
            answered_runs=answered.runs if answered else frozenset(),
            why_no_answer=answered.why_not if answered else "",
        )

    # answers

    def _answer(self) -> None:
        """Begin to compute the answers that are missing: of what is open, and of studies whose cells have all ended."""
        for study in self.store.studies or ():
            if self._is_to_be_answered(study):
                self._answering.add(study.id)
                self._computing = asyncio.get_running_loop().create_task(self._compute(study))
                return  # one at a time

    def _is_to_be_answered(self, study: KnownStudy) -> bool:
        if not study.study.question or not study.done_runs or self._answering:
            return False
        if not study.complete and study.id not in self._watched.values():
            return False
        before = self._answers.get(study.id)
        if before is None:
            return True
        if (before.runs, before.complete) == (study.done_runs, study.complete):
            return False
        return study.complete or time.monotonic() - before.at > before.took_s / SHARE

    async def _compute(self, study: KnownStudy) -> None:
        began = time.monotonic()
        answer, why_not = None, ""
        try:
            folder = self._folders[study.id]
            runner = self._runner_of(folder) or self._runner()
            report = await asyncio.to_thread(study_report, folder, runner)
            answer = report.answer
        except DaemonUnreachable:
            return  # computed when there is a daemon
        except Exception as error:
            why_not = str(error)
        finally:
            self._answering.discard(study.id)
        now = time.monotonic()
        self._answers[study.id] = _Answered(study.done_runs, study.complete, answer, why_not, now, now - began)
        self.store.know_studies([self._with_findings(study) for study in self.store.studies or ()])
        self._look.set()

    def _ask_further(self) -> None:
        """Let the questions of studies that go on from here ask for further runs, once all cells have ended."""
        for study in self.store.studies or ():
            cells = len(study.progress)
            if study.complete and self._begun.get(study.id, cells) != cells and study.id not in self._submitting:
                self._submit(self._folders[study.id], retry=False)
                self._begun[study.id] = cells

    # what a user asks

    async def start(self, study: Study) -> str:
        """Queue the cells of a study, or go on with the one that asked for the same; gives its id.

        Raises InvalidInput, and OutputError where its folder cannot be written.
        """
        where = self.runner().where
        folder, _ = await asyncio.to_thread(lambda: StudyFolder.of(study, where=where))
        self._begun[folder.id] = 0
        self._submit(folder, retry=False)
        return folder.id

    async def resume(self, study_id: str) -> None:
        """Queue the cells that are not queued yet, and again those that failed or were cancelled."""
        folder = await self._folder(study_id)
        if on := _on(folder):
            raise InvalidInput(
                f"on {on} a study runs as long as the command that runs it",
                hint=f"in a terminal: cwtool study resume {study_id}",
            )
        self._begun[study_id] = 0
        self._submit(folder, retry=True)

    async def cancel(self, study_id: str) -> None:
        """Cancel the runs of a study that have not ended."""
        folder = await self._folder(study_id)
        self._begun.pop(study_id, None)
        if submitting := self._submitting.get(study_id):
            submitting.stopped = True
        await asyncio.to_thread(cancel_study, folder, self._runner_of(folder) or self._runner())
        self._look.set()

    async def report(self, study_id: str) -> StudyReport:
        """What a study has come to, with the reports of its runs. Raises NotFound and DataError."""
        folder = await self._folder(study_id)
        return await asyncio.to_thread(study_report, folder, self._runner_of(folder) or self._runner())

    async def _folder(self, study_id: str) -> StudyFolder:
        known = self._folders.get(study_id)
        return known if known else await asyncio.to_thread(StudyFolder.open, study_id)

    def _submit(self, folder: StudyFolder, retry: bool) -> None:
        """Queue cells in a thread that may have to wait for room in the queue, and does not keep the program from ending."""
        runner, loop = self._runner(), asyncio.get_running_loop()
        self._submitting[folder.id] = runner

        def submit() -> None:
            error = None
            try:
                _submit_all(folder, runner, retry)
            except Exception as found:
                error = found
            with contextlib.suppress(RuntimeError):  # the program has ended
                loop.call_soon_threadsafe(self._submitted, folder.id, runner, error)

        threading.Thread(target=submit, daemon=True, name=f"submit {folder.id}").start()

    def _submitted(self, study_id: str, runner: RunnerOfStudies, error: Exception | None) -> None:
        if self._submitting.get(study_id) is runner:
            del self._submitting[study_id]
        if error is not None and not runner.stopped:
            self.complain(error)
        self._look.set()

    def _runner_of(self, folder: StudyFolder) -> RunnerOfStudies | None:
        """Who knows the runs of a study that another process of this machine runs; None for one of the daemon."""
        asked = named_at(folder.where)
        if asked is None or self.runner().elsewhere:
            return None
        if folder.where not in self._named:
            self._named[folder.where] = RunnerOfStudies(asked.open(), {}, self._ended)
        return self._named[folder.where]

    def _stages(self, where: str, progress: tuple[CellProgress, ...]) -> dict[str, Stage | None]:
        """How far the runs are that a named runner does now."""
        followed = self._followed.setdefault(where, StagesFollowed(self._named[where]))
        return {entry.run_id: followed(entry.run_id) for entry in progress if entry.state == "running"}

    def _moment(self) -> int:
        """Another one every few seconds while such a study goes on."""
        goes_on = any(study.on and not study.complete for study in self.store.studies or ())
        return int(time.monotonic() / NAMED_S) if goes_on else 0

    def _runner(self, jobs: Sequence[JobView] = ()) -> RunnerOfStudies:
        """`jobs` are those that wait or run."""
        return RunnerOfStudies(self.runner(), {job.run_id: job for job in jobs}, self._ended)


def _on(folder: StudyFolder) -> str:
    """The kind of a runner with a name, "ray"; empty for the daemon."""
    named = named_at(folder.where)
    return named.kind if named else ""


def _submit_all(folder: StudyFolder, runner: RunnerOfStudies, retry: bool) -> None:
    """Queue all cells, and wait for room in the queue where there is none."""
    while not runner.stopped:
        try:
            run_study(folder, runner, retry=retry, wait=False)
        except QueueFull:
            retry = False  # what failed is queued, and not to be queued again
            runner.wait_for_room()
        else:
            return


def _changed(path: Path) -> int:
    """When a file or folder was changed, in ns; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
