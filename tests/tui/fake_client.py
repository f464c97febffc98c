"""A daemon made of lists: it holds what a test puts in, and clients connected to it see each change at once."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from textual.app import App

from cwa_daemon.protocol import (
    TERMINAL_STATES,
    DeviceMemory,
    JobOptions,
    JobPage,
    JobQuery,
    JobView,
    Marks,
    Sample,
    StageProgress,
    StatusView,
    WarmModel,
    WorkerView,
    check_tags,
    with_tags,
)
from cwa_engine.base.errors import CwaError, NoDaemon, NotFound, error_from_dict
from cwa_engine.base.events import Event
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.records.run_report import RunReport
from cwa_engine.runner import RunState
from cwa_engine.spec import RunSpec
from cwa_tui.app import CwtoolApp
from cwa_tui.store.preferences import PreferenceFile
from cwa_tui.store.session import Pace

T = TypeVar("T")
NOW = 1_795_460_700.0  # what the clock of every test says
QUICK = Pace(poll_s=0.05, idle_poll_s=0.05, retry_s=0.05, patience_s=5.0, redraw_s=0.05, settle_s=0.0)


class FakeDaemon:
    """`submitted`, `planned`, `inspected`, `examined`, `prompted`, `cancelled` and `unloaded` are what clients asked for;
    `started` counts the daemons that they started. `refuse` is raised by the next submit. `files` are those of finished
    runs, by run id and name."""

    def __init__(self) -> None:
        self.reachable = True
        self.connections = 0
        self.jobs: dict[str, JobView] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.models: list[WarmModel] = []
        self.samples: list[Sample] = []
        self.reports: dict[str, RunReport] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.started = 0
        self.version = 0
        self.planned: list[RunSpec] = []
        self.inspected: list[tuple[RunSpec, str]] = []
        self.examined: list[tuple[RunSpec, str]] = []
        self.prompted: list[PromptSpec] = []
        self.submitted: list[tuple[RunSpec, str]] = []
        self.options: list[JobOptions] = []  # of these
        self.cancelled: list[str] = []
        self.unloaded: list[str] = []
        self.refuse: CwaError | None = None
        self.keys: dict[str | None, str] = {}  # of submissions of studies -> run id
        self._changed = asyncio.Event()

    async def connect(self, start: bool = False) -> FakeClient:
        if start and not self.reachable:
            self.started += 1
            self.reachable = True
        self.check()
        self.connections += 1
        return FakeClient(self)

    def check(self) -> None:
        if not self.reachable:
            raise NoDaemon("no daemon is running", hint="`cwtool daemon start` starts one")

    def add(self, run_id: str, spec: RunSpec | None = None, kind: str = "run") -> str:
        """A queued job, created a minute ago."""
        spec = spec or RunSpec(model="smollm2-135m", topk=(1, 10))
        self.jobs[run_id] = JobView(
            run_id=run_id,
            kind=kind,
            state="queued",
            model=spec.model,
            spec=spec.model_dump(mode="json"),
            device="cpu",
            created=NOW - 60,
        )
        self.events[run_id] = []
        self.say(run_id, "state", state="queued", error=None)
        return run_id

    def run(self, run_id: str, spec: RunSpec | None = None) -> str:
        """The same, and it runs since 42 seconds."""
        self.say(self.add(run_id, spec), "state", state="running", error=None)
        return run_id

    def end(self, run_id: str, state: str = "done", error: CwaError | None = None) -> None:
        self.say(run_id, "state", state=state, error=error.to_dict() if error else None)

    def say(self, run_id: str, kind: str, **fields: Any) -> None:
        """Store an event, and let the job's view follow it as the daemon does."""
        log, job = self.events[run_id], self.jobs[run_id]
        log.append({"seq": len(log) + 1, "time": NOW, "kind": kind, **fields})
        changes: dict[str, Any] = {"last_seq": len(log)}
        if kind == "progress":
            changes["progress"] = StageProgress(**fields)
        if kind == "state":
            changes |= {"state": fields["state"], "error": fields["error"]}
            if fields["state"] == "running":
                changes |= {"started": NOW - 42, "running_since": NOW - 42}
            if fields["state"] in TERMINAL_STATES:
                changes |= {"progress": None, "finished": NOW, "worked_s": job.took_s(NOW), "running_since": None}
        self.jobs[run_id] = job.model_copy(update=changes)
        self.wake()

    def progress(self, run_id: str, stage: str, done: int, total: int) -> None:
        self.say(run_id, "progress", stage=stage, done=done, total=total, unit="sequence")

    def lose(self) -> None:
        """The daemon is gone, for those who are connected as well."""
        self.reachable = False
        self.wake()

    def wake(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()


class FakeClient:
    """What `AsyncClient` offers the TUI."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon

    async def list_jobs(self, query: JobQuery | None = None) -> JobPage:
        self._daemon.check()
        query = query or JobQuery()
        found = [job for job in self._daemon.jobs.values() if _is_asked_for(job, query)]
        found.sort(key=lambda job: job.model if query.sort == "model" else "")
        if query.descending:
            found.reverse()
        return JobPage(found[query.offset : query.offset + query.limit], len(found))

    async def job(self, run_id: str) -> JobView:
        self._daemon.check()
        if run_id not in self._daemon.jobs:
            raise NotFound(f"there is no run '{run_id}'", hint="`cwtool jobs` lists all")
        return self._daemon.jobs[run_id]

    async def telemetry(self, after: float = 0.0) -> list[Sample]:
        self._daemon.check()
        return [sample for sample in self._daemon.samples if sample.time > after]

    async def report(self, run_id: str) -> RunReport:
        self._daemon.check()
        if run_id not in self._daemon.reports:
            raise NotFound(f"{run_id} has no result", hint="its files were removed")
        return self._daemon.reports[run_id]

    async def read_file(self, run_id: str, name: str) -> bytes:
        self._daemon.check()
        return self._daemon.files[run_id, name]

    async def wait_until_lost(self) -> None:
        while self._daemon.reachable:
            await self._daemon.changed()

    async def status(self) -> StatusView:
        self._daemon.check()
        states = [job.state for job in self._daemon.jobs.values()]
        return StatusView(
            version="0.1.0",
            pid=4242,
            uptime_s=100.0,
            home="/state",
            queued=states.count("queued"),
            running=states.count("running"),
            models=self._daemon.models,
            workers=[WorkerView(device="cpu", pid=4243, state="idle")],
            devices=[DeviceMemory(device="cpu", total_bytes=25_000_000_000, used_bytes=10_000_000_000)],
            memory_bytes=60_000_000,
            jobs_version=self._daemon.version,
        )

    async def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[dict[str, Any]]:
        seen = after_seq
        while True:
            self._daemon.check()
            for event in self._daemon.events[run_id][seen:]:
                seen = event["seq"]
                yield event
                if event["kind"] == "state" and event["state"] in TERMINAL_STATES:
                    return
            await self._daemon.changed()

    async def submit(self, spec: RunSpec, command: str = "", options: JobOptions | None = None) -> str:
        self._daemon.check()
        refuse, self._daemon.refuse = self._daemon.refuse, None
        if refuse:
            raise refuse
        self._daemon.submitted.append((spec, command))
        self._daemon.options.append(options or JobOptions())
        return self._daemon.add(f"20261123-190500-{spec.model}-new{len(self._daemon.submitted)}", spec)

    async def plan(self, spec: RunSpec, command: str = "") -> str:
        self._daemon.check()
        self._daemon.planned.append(spec)
        return self._daemon.add(f"20261123-190600-plan{len(self._daemon.planned)}", spec, "plan")

    async def inspect(self, spec: RunSpec, target: str) -> str:
        self._daemon.check()
        self._daemon.inspected.append((spec, target))
        return self._daemon.add(f"20261123-190700-look{len(self._daemon.inspected)}", spec, "inspect")

    async def weight(self, spec: RunSpec, target: str, command: str = "") -> str:
        self._daemon.check()
        self._daemon.examined.append((spec, target))
        return self._daemon.add(f"20261123-190800-card{len(self._daemon.examined)}", spec, "weight")

    async def prompt(self, spec: PromptSpec, command: str = "") -> str:
        self._daemon.check()
        self._daemon.prompted.append(spec)
        return self._daemon.add(f"20261123-190800-prompt{len(self._daemon.prompted)}", spec, "prompt")

    async def retry(self, run_id: str) -> str:
        self._daemon.check()
        return self._daemon.add(f"{run_id}-again", RunSpec(**self._daemon.jobs[run_id].spec))

    async def cancel(self, run_id: str) -> str:
        self._daemon.check()
        self._daemon.cancelled.append(run_id)
        self._daemon.end(run_id, "cancelled", CwaError("cancelled"))
        return "cancelled"

    async def mark(
        self, run_id: str, add: Sequence[str] = (), remove: Sequence[str] = (), note: str | None = None
    ) -> Marks:
        self._daemon.check()
        check_tags(add)
        job = self._daemon.jobs[run_id]
        marks = Marks(tags=with_tags(job.tags, add, remove), note=job.note if note is None else note)
        self._daemon.jobs[run_id] = job.model_copy(update=marks.model_dump())
        self._daemon.wake()
        return marks

    async def unload(self, model: str) -> list[str]:
        self._daemon.check()
        if model not in [warm.name for warm in self._daemon.models]:
            raise NotFound(f"{model} is not warm", hint="`cwtool ps` lists warm models")
        self._daemon.models = [warm for warm in self._daemon.models if warm.name != model]
        self._daemon.unloaded.append(model)
        return [model]

    async def close(self) -> None:
        pass


class FakeRunner:
    """Runs of studies on a daemon of the test, for threads beside the loop that it was made on. A key runs once."""

    where, elsewhere = "", False

    def __init__(self, daemon: FakeDaemon) -> None:
        self.daemon, self._client, self._loop = daemon, FakeClient(daemon), asyncio.get_running_loop()

    def submit(self, spec: RunSpec, key: str | None = None) -> FakeRun:
        if key not in self.daemon.keys:
            self.daemon.keys[key] = self.wait_for(self._client.submit(spec))
        return FakeRun(self, self.daemon.keys[key])

    def attach(self, run_id: str) -> FakeRun:
        return FakeRun(self, self.job(run_id).run_id)

    def states(self, run_ids: Sequence[str]) -> dict[str, RunState]:
        return {run_id: FakeRun(self, run_id).state() for run_id in run_ids if run_id in self.daemon.jobs}

    def wait_for_room(self) -> None:
        self.wait_for(self.daemon.changed())

    def job(self, run_id: str) -> JobView:
        return self.wait_for(self._client.job(run_id))

    def cancel(self, run_id: str) -> None:
        self.wait_for(self._client.cancel(run_id))

    def report(self, run_id: str) -> RunReport:
        return self.wait_for(self._client.report(run_id))

    def wait_for(self, asked: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(10)


@dataclass(frozen=True)
class FakeRun:
    runner: FakeRunner
    run_id: str

    def events(self) -> Iterator[Event]:
        return iter(())

    def state(self) -> RunState:
        job = self.runner.job(self.run_id)
        return RunState(cast("Any", job.state), time.time(), error_from_dict(job.error) if job.error else None)

    def report(self) -> RunReport:
        return self.runner.report(self.run_id)

    def altered(self) -> tuple[str, ...]:
        return ()

    def cancel(self) -> None:
        self.runner.cancel(self.run_id)


def _is_asked_for(job: JobView, query: JobQuery) -> bool:
    said = f"{job.run_id} {job.model} {job.state} {job.spec['metrics']} {job.tags} {job.note}".lower()
    return (
        (not query.kinds or job.kind in query.kinds)
        and (not query.states or job.state in query.states)
        and all(word in said for word in (query.text or "").lower().split())
    )


def app_on(daemon: FakeDaemon, preferences: PreferenceFile | None = None, ascii: bool | None = False) -> CwtoolApp:
    """The app, connected to a daemon of the test, with a clock that stands still, and preferences of its own."""
    own = preferences or PreferenceFile(Path(tempfile.mkdtemp()) / "tui.json")
    return CwtoolApp(
        daemon.connect, clock=lambda: NOW, pace=QUICK, preferences=own, ascii=ascii, runner=lambda _: FakeRunner(daemon)
    )


def screen_lines(app: App[Any]) -> list[str]:
    """What is on the screen, line by line."""
    return [strip.text for strip in app.screen._compositor.render_strips()]


async def steady(app: App[Any], for_s: float = 0.3) -> list[str]:
    """The screen once it has stayed the same for a while."""
    seen, since = screen_lines(app), time.monotonic()

    def stays() -> bool:
        nonlocal seen, since
        if (now := screen_lines(app)) != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > for_s

    await until(stays)
    return seen


def screen_text(app: App[Any]) -> str:
    return "\n".join(screen_lines(app))


async def until(condition: Callable[[], object], patience_s: float = 10.0) -> None:
    """Let the app work until the condition holds; fails where it does not come true."""
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110  nobody tells a test what became true on screen
            await asyncio.sleep(0.005)


async def sees(app: App[Any], *texts: str) -> None:
    """Wait until these texts are on screen; where they do not come, the error has what is there."""
    try:
        await until(lambda: all(text in screen_text(app) for text in texts))
    except TimeoutError:
        raise AssertionError(f"{texts} are not all on screen:\n{screen_text(app)}") from None


def weights(count: int, first: float = 1.0) -> list[dict[str, Any]]:
    """A ranking as it travels."""
    return [
        {
            "rank": rank,
            "parameter": f"model.layers.{rank}.mlp.down_proj.weight",
            "flat_index": rank,
            "out_feature": 2533,
            "in_feature": rank,
            "value": -0.5,
            "score": first / rank,
            "layer": rank,
            "component": "down",
            "expert": None,
            "target": f"model.layers.{rank}.mlp.down_proj.weight[2533,{rank}]",
            "stable": None,
        }
        for rank in range(1, count + 1)
    ]


def point(k: int, selection: str = "critical", seed: int | None = None, **fields: Any) -> dict[str, Any]:
    """A damage point as it travels."""
    return {
        "metric": "grad_x_weight",
        "k": k,
        "perturbation": "zero",
        "selection": selection,
        "seed": seed,
        "weights": k,
        "nll": 4.76,
        "perplexity": 116.95,
        "delta_nll": 1.8791,
        "delta_low": 1.7196,
        "delta_high": 2.0126,
        "perplexity_ratio": 6.5477,
        "collapsed_at": None,
    } | fields


def warm(name: str = "smollm2-135m", dtype: str = "float32") -> WarmModel:
    return WarmModel(
        name=name,
        dtype=dtype,
        device="cpu",
        parameters=134_515_008,
        size_bytes=538_060_032,
        loaded=NOW - 100,
        last_used=NOW - 30,
        jobs_served=3,
    )


BASELINE = {
    "nll": 2.8827,
    "perplexity": 17.86,
    "bits_per_byte": 0.91,
    "sequences": 2,
    "tokens": 360,
    "protocol": "one text a sequence",
}


def whole_run(daemon: FakeDaemon, run_id: str, ks: Sequence[int] = (1, 10)) -> str:
    """A run with all its events, from queued to done."""
    daemon.run(run_id)
    daemon.say(run_id, "stage_started", stage="baseline")
    daemon.say(run_id, "baseline", baseline=BASELINE)
    daemon.say(run_id, "stage_finished", stage="baseline", seconds=12.2)
    daemon.say(run_id, "stage_started", stage="score")
    daemon.progress(run_id, "score", 2, 2)
    daemon.say(run_id, "topk", metric="grad_x_weight", partial=False, weights=weights(max(ks)))
    for k in ks:
        daemon.say(run_id, "damage", point=point(k))
        for seed in range(3):
            calm = {"perplexity": 17.87, "delta_nll": 0.0001, "delta_low": -0.0002, "delta_high": 0.0003}
            daemon.say(run_id, "damage", point=point(k, "random", seed, perplexity_ratio=1.0001, **calm))
    daemon.end(run_id)
    return run_id
