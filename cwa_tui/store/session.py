"""Between daemon and store: poll, follow runs, fetch results, reconnect, and pass on what a user asks. No Textual in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

from cwa_daemon.protocol import JobOptions, JobPage, JobQuery, JobView, Marks, Sample, StatusView
from cwa_engine.base.errors import CwaError, DaemonUnreachable, InvalidInput, NoDaemon
from cwa_engine.base.plain import JsonMap
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.tables import topk_table
from cwa_engine.runner import Runner
from cwa_engine.spec import RunSpec
from cwa_tui.store.events import read_job_event
from cwa_tui.store.followed_run import run_after
from cwa_tui.store.state import ConnectionState, TuiStore
from cwa_tui.tables.ranking import RankingRows

if TYPE_CHECKING:
    from cwa_engine.studies.study import Study
    from cwa_tui.store.study_watch import StudyWatch

ACTIVE = JobQuery(limit=20, states=("queued", "paused", "running"), descending=False)


class DaemonClient(Protocol):
    """What the TUI needs of `cwa_daemon.client.AsyncClient`."""

    async def list_jobs(self, query: JobQuery | None = ...) -> JobPage: ...
    async def job(self, run_id: str) -> JobView: ...
    async def status(self) -> StatusView: ...
    async def telemetry(self, after: float = ...) -> list[Sample]: ...
    def follow(self, run_id: str, after_seq: int = ...) -> AsyncIterator[JsonMap]: ...
    async def report(self, run_id: str) -> RunReport: ...
    async def read_file(self, run_id: str, name: str) -> bytes: ...
    async def submit(self, spec: RunSpec, command: str = ..., options: JobOptions | None = ...) -> str: ...
    async def plan(self, spec: RunSpec, command: str = ...) -> str: ...
    async def inspect(self, spec: RunSpec, target: str) -> str: ...
    async def weight(self, spec: RunSpec, target: str, command: str = ...) -> str: ...
    async def prompt(self, spec: PromptSpec, command: str = ...) -> str: ...
    async def retry(self, run_id: str) -> str: ...
    async def cancel(self, run_id: str) -> str: ...
    async def mark(
        self, run_id: str, add: Sequence[str] = ..., remove: Sequence[str] = ..., note: str | None = ...
    ) -> Marks: ...
    async def unload(self, model: str) -> list[str]: ...
    async def wait_until_lost(self) -> None: ...
    async def close(self) -> None: ...


RunnerOf = Callable[["DaemonClient"], Runner]  # called on the loop; its calls are for threads beside it
Connect = Callable[[bool], Awaitable[DaemonClient]]  # with True a daemon is started where none runs


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen."""

    poll_s: float = 1.0  # between two requests for jobs and memory, while anything runs
    idle_poll_s: float = 2.0  # the same while nothing does
    retry_s: float = 2.0  # between two attempts to reach a daemon that is gone
    patience_s: float = 10.0  # for an answer: the end of a daemon is known at once, and a machine may be busy
    redraw_s: float = 0.5
    settle_s: float = 0.1  # a cursor that runs down the list does not subscribe to every run it passes


def _no_runner(client: DaemonClient) -> Runner:
    raise NotImplementedError


class Session:
    """Keeps a store up to date. `connect` gives a connected client, a new one at each call; `runner` runs studies on it."""

    def __init__(
        self, connect: Connect, pace: Pace, store: TuiStore | None = None, runner: RunnerOf = _no_runner
    ) -> None:
        self.store = store or TuiStore()
        self.pace = pace
        self._connect = connect
        self._client: DaemonClient | None = None
        self._poll_now = asyncio.Event()
        self._list_anew = True
        self._start_now = asyncio.Event()
        self._watched: dict[object, frozenset[str]] = {}  # by who watches
        self._watched_changed = asyncio.Event()
        self.started: set[str] = set()  # run ids of what the user started here
        self.examined: dict[tuple[str, str], str] = {}  # run and weight -> the job that examines the weight
        self._fetching: dict[tuple[str, str], asyncio.Task[None]] = {}  # run id and file
        self._complain: Callable[[Exception], None] = lambda error: None
        self._runner = runner
        self._studies_shown = asyncio.Event()

    async def keep_up(self, complain: Callable[[Exception], None]) -> None:
        """Poll, and follow the runs that are watched, for ever; connect again whenever the connection fails.

        The first time, and when the user asks for it, a daemon is started where none runs. `complain` is called with the
        error of a run that cannot be followed. The store says that the daemon is lost.
        """
        self._complain = complain
        start = True
        while True:
            try:
                self._client = await self._connect(start)
                self.store.is_starting(False)
                self._list_anew = True
                async with _beside(self._follow_watched(self._client)), _beside(self._keep_up_studies(self._client)):
                    await self._poll(self._client)
            except Exception as error:  # the answer to every error is the same: say so, and connect again
                self.store.is_starting(False)
                self.store.lost(_as_cwa_error(error))
            await self.close()
            start = await _set_within(self._start_now, self.pace.retry_s)
            self._start_now.clear()

    def start_daemon(self) -> None:
        """Start a daemon, at the user's wish, where none runs."""
        self.store.is_starting(True)
        self._start_now.set()

    async def _poll(self, client: DaemonClient) -> None:
        """Ask the daemon again and again, until it does not answer or the connection to it has ended."""
        version = -1
        lost = asyncio.ensure_future(client.wait_until_lost())
        lost.add_done_callback(lambda _: self._poll_now.set())
        try:
            while not lost.done():
                async with asyncio.timeout(self.pace.patience_s):
                    status = await client.status()
                    latest = self.store.history[-1].time if self.store.history else 0.0
                    samples = await client.telemetry(latest)
                    counted = status.jobs_version != 0  # an older daemon does not count changes
                    if self._list_anew or not counted or status.jobs_version != version:
                        version, self._list_anew = status.jobs_version, False
                        await self._list(client)
                self.store.answered(status, samples)
                await _set_within(self._poll_now, self.pace.poll_s if status.running else self.pace.idle_poll_s)
                self._poll_now.clear()
        finally:
            lost.cancel()
        raise NoDaemon("the daemon has ended", hint="press D to start it")

    async def _list(self, client: DaemonClient) -> None:
        query = self.store.query
        page, active = await client.list_jobs(query), await client.list_jobs(ACTIVE)
        self.store.listed(page, query.offset, active)

    # runs that are watched

    def watch(self, who: object, run_ids: Iterable[str]) -> None:
        """Follow these runs for a screen, and no others for it."""
        wanted = frozenset(run_ids)
        if self._watched.get(who, frozenset()) != wanted:
            self._watched[who] = wanted
            self._watched_changed.set()

    def unwatch(self, who: object) -> None:
        if self._watched.pop(who, None):
            self._watched_changed.set()

    @property
    def watched(self) -> frozenset[str]:
        """Run ids that a screen watches."""
        return frozenset().union(*self._watched.values())

    async def _follow_watched(self, client: DaemonClient) -> None:
        """Follow the runs that somebody watches, each in a task of its own."""
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                wanted = self.watched
                for run_id in tasks.keys() - wanted:
                    tasks.pop(run_id).cancel()
                for run_id in wanted - tasks.keys():
                    tasks[run_id] = asyncio.create_task(self._follow(client, run_id))
                await self._watched_changed.wait()
                self._watched_changed.clear()
        finally:
            for task in tasks.values():
                task.cancel()
            if tasks:
                await asyncio.wait(tasks.values())

    async def _follow(self, client: DaemonClient, run_id: str) -> None:
        """Take a run's events from the last known one until it has ended, then its report."""
        await asyncio.sleep(self.pace.settle_s)
        try:
            if self.store.job(run_id) is None:
                self.store.know_job(await client.job(run_id))
            run = self.store.followed_run(run_id)
            if not run.status.ended:
                async for plain in client.follow(run_id, run.last_seq):
                    self.store.change_run(run_id, partial(run_after, event=read_job_event(plain)))
                self.store.know_job(await client.job(run_id))
                self._poll_now.set()
            job = self.store.job(run_id)
            if job and job.kind == "run" and job.state == "done":
                await self._fetch_report(client, run_id)
        except DaemonUnreachable:
            pass  # polling fails as well, says so, and connects again
        except Exception as error:
            self._complain(error)

    # studies

    @cached_property
    def studies(self) -> StudyWatch:
        """Keeps the studies in the store up to date while a screen watches them."""
        from cwa_tui.store.study_watch import StudyWatch  # numpy comes with what answers are made of: 0.2 s

        self._studies_shown.set()
        watch = StudyWatch(self.store, self.pace.idle_poll_s, lambda: self._runner(self.client))
        watch.complain = self._complain
        return watch

    async def _keep_up_studies(self, client: DaemonClient) -> None:
        await self._studies_shown.wait()
        await self.studies.keep_up(client)

    # results

    def want_ranking(self, run_id: str, metric: str) -> None:
        """Have a finished run's whole ranking in the store before long."""
        if self.store.ranking(run_id, metric) is None:
            self._begin(run_id, topk_table(metric).name, lambda client: self._fetch_ranking(client, run_id, metric))

    async def _fetch_report(self, client: DaemonClient, run_id: str) -> None:
        if self.store.report(run_id) is not None:
            return
        try:
            self.store.keep_report(await client.report(run_id))
        except DaemonUnreachable:
            raise
        except CwaError as error:  # altered, removed, of an early version
            self.store.has_no_report(run_id, error)

    async def _fetch_ranking(self, client: DaemonClient, run_id: str, metric: str) -> None:
        name = topk_table(metric).name
        content = await client.read_file(run_id, name)
        try:
            rows = await asyncio.to_thread(RankingRows.from_csv, content)
        except ValueError as error:
            raise InvalidInput(f"{name} of {run_id} cannot be read: {error}") from error
        self.store.keep_ranking(run_id, metric, rows)

    def _begin(self, run_id: str, name: str, fetch: Callable[[DaemonClient], Awaitable[None]]) -> None:
        """Fetch something once, beside what else is done."""
        client = self._client
        if client is None or (run_id, name) in self._fetching:
            return

        async def fetched() -> None:
            try:
                await fetch(client)
            except DaemonUnreachable:
                pass  # asked for again when there is a daemon
            except Exception as error:
                self._complain(error)
                return  # and not asked for again
            self._fetching.pop((run_id, name), None)

        self._fetching[run_id, name] = asyncio.create_task(fetched())

    # what a user asks

    def select(self, run_id: str) -> None:
        """Select a run of the list."""
        self.store.select(run_id)

    def ask(self, query: JobQuery) -> None:
        """Have the job list show what a query says."""
        if query != self.store.query:
            self.store.ask(query)
            self._list_anew = True
            self._poll_now.set()

    async def submit(self, spec: RunSpec, command: str, options: JobOptions) -> str:
        """Queue a run and select it. Raises what `AsyncClient.submit` raises."""
        return self._select_new(await self.client.submit(spec, command, options))

    async def examine(self, run_id: str, spec: RunSpec, target: str, command: str) -> str:
        """Have a weight of a run examined; gives the job's run id. Asked again, it is the job of before, if it did not fail."""
        known = self.examined.get((run_id, target))
        if known and (job := self.store.job(known)) and job.state not in ("failed", "cancelled"):
            return known
        job_id = await self.client.weight(spec, target, command)
        self.examined[run_id, target] = job_id
        self.started.add(job_id)
        self._poll_now.set()
        return job_id

    async def retry(self, run_id: str) -> str:
        """Queue an ended run again and select the new one."""
        return self._select_new(await self.client.retry(run_id))

    async def cancel(self, run_id: str) -> str:
        """Cancel a run; gives its state right after."""
        state = await self.client.cancel(run_id)
        self._poll_now.set()
        return state

    async def start_study(self, study: Study) -> str:
        """Write a new study's folder and queue its cells; gives its id. Raises InvalidInput and OutputError."""
        return await self.studies.start(study)

    async def resume_study(self, study_id: str) -> None:
        """Queue what a study has not queued yet, and again what failed or was cancelled."""
        await self.studies.resume(study_id)

    async def cancel_study(self, study_id: str) -> None:
        """Cancel the runs of a study that have not ended."""
        await self.studies.cancel(study_id)
        self._poll_now.set()

    async def mark(self, run_id: str, add: Sequence[str], remove: Sequence[str], note: str) -> Marks:
        """Change the tags and the note of a run. Raises what `AsyncClient.mark` raises."""
        marks = await self.client.mark(run_id, add, remove, note)
        self.store.know_job(await self.client.job(run_id))
        self._poll_now.set()
        return marks

    async def unload(self, model: str) -> list[str]:
        """Free a warm model's memory; gives the names of what was unloaded."""
        names = await self.client.unload(model)
        self._poll_now.set()
        return names

    @property
    def client(self) -> DaemonClient:
        """The client, or DaemonUnreachable while there is none that works."""
        connection = self.store.connection
        if self._client is None or connection.state is not ConnectionState.CONNECTED:
            raise connection.trouble or DaemonUnreachable("the daemon is not reachable", hint="press D to start it")
        return self._client

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        self._fetching.clear()
        client, self._client = self._client, None
        if client:
            await client.close()

    def _select_new(self, run_id: str) -> str:
        self.started.add(run_id)
        self.select(run_id)
        self._poll_now.set()
        return run_id


@contextlib.asynccontextmanager
async def _beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Do some work while the block runs; at its end the work is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so long; whether it was set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _as_cwa_error(error: Exception) -> CwaError:
    if isinstance(error, CwaError):
        return error
    if isinstance(error, TimeoutError):
        return DaemonUnreachable("it does not answer", hint="`cwtool daemon restart` helps")
    return DaemonUnreachable(f"{type(error).__name__}: {error}", hint="`cwtool daemon restart` helps")
