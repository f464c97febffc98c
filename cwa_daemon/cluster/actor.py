"""An actor: the daemon's own executor, with its warm models, on one slot of the cluster.

Its class is imported by whoever starts it, so torch is imported in the actor alone. One thread computes, for life, because
OpenMP has a team of threads for each thread that asks. The method `run` hands on what it reports; `cancel` is heard meanwhile.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_daemon.base.settings import Settings
from cwa_daemon.cluster.store import put_folder
from cwa_daemon.pipe.messages import EventReport, Finished, Report, RunJob, command_reader, encode
from cwa_engine.base.errors import CwaError, OutputError, RunFailed
from cwa_engine.base.files import is_abandoned, scratch_path
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.source_code import code_sha256
from cwa_engine.base.version import __version__
from cwa_engine.records.checksums import SUMS, fingerprint_of
from cwa_engine.records.export import library_versions

if TYPE_CHECKING:
    from cwa_daemon.worker.executor import Executor

TOGETHER_S = 0.2  # reports that come within it travel together


@dataclass(frozen=True, slots=True)
class About:
    """Where an actor is, and what it computes with."""

    node: str  # Ray's id
    host: str
    pid: int
    device: str
    code: dict[str, str]  # name -> version or hash; see `code_here`


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run that is done: all of them, or where they are kept in a store the list of hashes alone."""

    run_id: str
    files: dict[str, bytes] = field(repr=False)
    fingerprint: str = ""
    place: str = ""  # where they are kept; empty where they are all here


def code_here() -> dict[str, str]:
    """What results depend on: a study is of one code."""
    return {"cwtool": __version__, "the source of cwa_engine": code_sha256(), **library_versions()}


class SlotActor:
    """What Ray makes an actor of, see `cluster.slot`. Its constructor does nothing that could fail."""

    def __init__(self) -> None:
        self._slot: _Slot | None = None

    def about(self, gpus: int, share: float, threads: int) -> About:
        """Begin, if this process has not yet. `share` is the part of the node's memory budget that is this slot's."""
        if self._slot is None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
            self._slot = _Slot(_device(gpus), share)
        return self._slot.about()

    def run(self, command: bytes, store: str) -> Iterator[bytes | RunFiles]:
        """Do a run: what it reports, as messages of `pipe.messages`, and before its end its files."""
        assert self._slot
        yield from self._slot.run(next(command_reader().feed(command)), store)

    def cancel(self, run_id: str) -> None:
        if self._slot:
            self._slot.cancels.add(run_id)


class _Slot:
    """The executor and the thread that it runs in."""

    def __init__(self, device: str, share: float) -> None:
        self.cancels = _Cancels()
        self._device = device
        self._settings = Settings()  # of this node
        self._share = share
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwtool run")
        self._scratch = _scratch_folder(self._settings)
        os.chdir(_empty_folder(self._settings))  # with nothing in it, so that no model is taken for a path
        self._executor = self._thread.submit(self._new_executor)  # which takes seconds, while a run is on its way

    def about(self) -> About:
        import ray

        node = ray.get_runtime_context().get_node_id()
        return About(node, socket.gethostname(), os.getpid(), self._device, code_here())

    def run(self, command: Any, store: str) -> Iterator[bytes | RunFiles]:
        assert isinstance(command, RunJob)
        folder = self._scratch / command.run_id
        work = self._thread.submit(self._obey, self._for_this_node(command, folder))
        try:
            yield from self._said(command.run_id, folder, store, work)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _said(self, run_id: str, folder: Path, store: str, work: Future[None]) -> Iterator[bytes | RunFiles]:
        """What a run reports, several at once where they come fast; its files before its end."""
        since = -TOGETHER_S
        while True:
            reports = [self._reports.get()]
            while (left := since + TOGETHER_S - time.monotonic()) > 0 and not isinstance(reports[-1], Finished):
                try:
                    reports.append(self._reports.get(timeout=left))
                except queue.Empty:
                    break
            since = time.monotonic()
            end = reports.pop() if isinstance(reports[-1], Finished) else None
            if told := [report for report in reports if isinstance(report, EventReport)]:
                yield b"".join(map(encode, told))
            if isinstance(end, Finished):
                work.result()  # which has said its last word
                if end.error is None:
                    try:
                        yield _files_of(run_id, folder, store)
                    except (CwaError, OSError) as error:
                        end = dataclasses.replace(end, error=_not_kept(error, store).to_dict())
                yield encode(end)
                return

    def _obey(self, command: RunJob) -> None:
        try:
            self._executor.result().obey(command)
        except BaseException as error:  # whoever waits for its end hears of it, and this actor is not used again
            failed = RunFailed(f"{type(error).__name__}: {error}", hint="the log of the actor says more (`ray logs`)")
            self._reports.put(Finished(run_id=command.run_id, error=failed.to_dict(), ends=True))

    def _for_this_node(self, command: RunJob, folder: Path) -> RunJob:
        """The command with the cache and the memory of this node."""
        limits = Settings.limits(self._settings)
        budget = limits["budget_bytes"]
        own = {name: limits[name] for name in ("reserve_bytes", "load_bytes", "cache_folder", "cache_bytes")}
        own["budget_bytes"] = None if budget is None else int(budget * self._share)
        return dataclasses.replace(
            command, folder=str(folder), device=self._device, limits=dataclasses.replace(command.limits, **own)
        )

    def _new_executor(self) -> Executor:
        from cwa_daemon.worker.executor import Executor  # imports torch

        return Executor(self._device, self.cancels, _Reports(self._reports), leave=_stay)


class _Reports:
    """Takes what the executor reports."""

    def __init__(self, kept: queue.SimpleQueue[Report]) -> None:
        self._kept = kept

    def send(self, report: Report) -> None:
        if isinstance(report, EventReport):
            report = dataclasses.replace(report, time=time.time())
        self._kept.put(report)


class _Cancels:
    """Which runs were cancelled."""

    def __init__(self) -> None:
        self._run_ids: set[str] = set()
        self._news = threading.Condition()

    def add(self, run_id: str) -> None:
        with self._news:
            self._run_ids.add(run_id)
            self._news.notify_all()

    def is_cancelled(self, run_id: str) -> bool:
        return run_id in self._run_ids

    def wait_for_cancel(self, run_id: str, timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: run_id in self._run_ids, timeout_s)


def _stay(code: int) -> None:
    """The driver ends an actor that has said that it ends: what it said must arrive first."""
    print(f"this actor is of no use any more (exit code {code} of a worker)", file=sys.stderr, flush=True)


def _files_of(run_id: str, folder: Path, store: str) -> RunFiles:
    """The files of a run that is done here, brought to the store where there is one. Raises CwaError, OSError."""
    fingerprint = fingerprint_of(folder) or ""
    if store:
        place = put_folder(folder, store)
        return RunFiles(run_id, {SUMS: (folder / SUMS).read_bytes()}, fingerprint, place)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return RunFiles(run_id, files, fingerprint)


def _not_kept(error: Exception, store: str) -> CwaError:
    if isinstance(error, CwaError):
        return error
    return OutputError(
        f"the files of a run cannot be kept in {store or 'its folder'} by {socket.gethostname()}: {error}",
        hint="see that every node may write there",
    )


def _device(gpus: int) -> str:
    """The device of this slot, which sees all of its node and is told by Ray which are its own."""
    if not gpus:
        return "cpu"
    import ray

    own = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return "+".join(f"cuda:{number}" for number in own)


def _scratch_folder(settings: Settings) -> Path:
    """A folder of this process, below the state folder of the node; those of processes that have ended are removed."""
    root = settings.home / "ray" / "scratch"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for other in root.iterdir():
        if is_abandoned(other):
            shutil.rmtree(other, ignore_errors=True)
    scratch = scratch_path(root / "runs")
    scratch.mkdir(mode=0o700)
    return scratch


def _empty_folder(settings: Settings) -> Path:
    settings.empty_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings.empty_folder


def check_code(there: About, here: JsonMap) -> str:
    """What differs between the code of an actor and this one's, in words; empty where it is the same."""
    names = sorted(here.keys() | there.code.keys())
    wrong = [(name, there.code.get(name), here.get(name)) for name in names if there.code.get(name) != here.get(name)]
    return ", ".join(f"{name} is {_short(one)} there and {_short(other)} here" for name, one, other in wrong)


def _short(version: object) -> str:
    return str(version)[:12] if version else "missing"
