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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cwa_daemon.base.settings import Settings
from cwa_daemon.cluster.carried import CarriedTexts, check_paths, read_from, unpacked
from cwa_daemon.cluster.messages import About, Errand, Place, RunFiles, code_here
from cwa_daemon.cluster.store import check_store, put_folder
from cwa_daemon.cluster.temporary import own_temporary
from cwa_daemon.pipe.messages import EventReport, Finished, Heartbeat, Report, RunJob, Waiting, command_reader, encode
from cwa_engine.base.errors import Cancelled, CwaError, OutputError, RunFailed
from cwa_engine.base.events import Note, to_dict
from cwa_engine.base.importing import without_collections
from cwa_engine.hub.imported import lend_import
from cwa_engine.machine.memory import available_memory
from cwa_engine.records.checksums import MANIFEST, SUMS, fingerprint_of
from cwa_engine.spec import RunSpec, parse_spec

if TYPE_CHECKING:
    from cwa_daemon.worker.executor import Executor

TOGETHER_S = 0.2  # reports that come within it travel together
HEARTBEAT_S = 2.0  # of silence, and then it is said how much was computed
KEEP_AGAIN_S = 2.0  # between two attempts to bring files to a store that did not take them
LOG_BYTES = 5 * 2**20  # of an actor's log, before it is begun anew
TELLING = (MANIFEST, "summary.json", SUMS)  # files that say what a run is


class SlotActor:
    """What Ray makes an actor of, see `driving`. Its constructor does nothing that could fail."""

    def __init__(self) -> None:
        self._slot: _Slot | None = None

    def about(self, place: Place) -> About:
        """Begin, if this process has not yet, and tell where it is."""
        if self._slot is None:
            self._slot = _Slot(place)
        return self._slot.about

    def run(self, errand: Errand, texts: CarriedTexts | None) -> Iterator[bytes | RunFiles]:
        """Do a run: what it reports, as messages of `pipe.messages`, and before its end its files."""
        assert self._slot
        yield from self._slot.run(errand, texts)

    def cancel(self, run_id: str) -> None:
        if self._slot:
            self._slot.cancels.add(run_id)

    def leave(self) -> None:
        """Remove what this process has on the disk of its node: it is about to be ended."""
        if self._slot:
            self._slot.clear()


class _Slot:
    """The executor and the thread that it runs in."""

    def __init__(self, place: Place) -> None:
        cores = psutil.cpu_count(logical=False) or place.cpus
        os.environ["OMP_NUM_THREADS"] = str(place.threads or min(place.cpus, cores))  # before torch is imported
        self.cancels = _Cancels()
        self._settings = Settings()  # of this node
        self._share = place.share
        # Now, for once it is taken it counts as all that there is.
        self._share_bytes = None if place.share == 1 else int(available_memory().total_bytes * place.share)
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._processor_s: Callable[[], float] = lambda: 0.0  # that the thread has computed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cwtool run")
        self._scratch = own_temporary("slot")
        self._texts_at: tuple[CarriedTexts, Path] | None = None  # of the run that is under way
        log = _write_log(self._settings, place.number)
        os.chdir(_empty_folder(self._settings))  # with nothing in it, so that no model is taken for a path
        node, device = _node_and_device(place.gpus)
        self.about = About(node, socket.gethostname(), os.getpid(), device, str(log), code_here())
        self._executor = self._thread.submit(self._new_executor)  # which takes seconds, while a run is on its way

    def run(self, errand: Errand, texts: CarriedTexts | None) -> Iterator[bytes | RunFiles]:
        (command,) = command_reader().feed(errand.command)
        assert isinstance(command, RunJob)
        folder = self._scratch / command.run_id
        self._thread.submit(self._obey, self._for_this_node(command, folder), errand, texts)
        try:
            yield from self._said(command.run_id, folder, errand.store)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _said(self, run_id: str, folder: Path, store: str) -> Iterator[bytes | RunFiles]:
        """What a run reports, several at once where they come fast; its files before its end."""
        since = -TOGETHER_S
        while True:
            reports = self._next_reports(since)
            since = time.monotonic()
            end = reports.pop() if isinstance(reports[-1], Finished) else None
            if reports:
                yield b"".join(map(encode, reports))
            if isinstance(end, Finished):
                if end.error is None:
                    try:
                        yield from self._kept(run_id, folder, store)
                    except CwaError as error:
                        end = dataclasses.replace(end, error=error.to_dict())
                yield encode(end)
                return

    def _kept(self, run_id: str, folder: Path, store: str) -> Iterator[bytes | RunFiles]:
        """The files of a run that is done, once they are where they are kept. Where the store does not take them, try again
        until the run is cancelled; meanwhile it is said that this actor lives. Raises InvalidInput, OutputError, Cancelled."""
        said: object = None
        while True:
            keeping = self._thread.submit(_files_of, run_id, folder, store)
            while not wait([keeping], HEARTBEAT_S).done:  # a slow store takes minutes
                yield encode(Heartbeat(processor_s=self._processor_s()))
            try:
                yield keeping.result()
                return
            except (OutputError, OSError) as error:
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
                kind = type(error), getattr(error, "errno", None)  # what a store says may have another number each time
                if not (store and folder.is_dir()):  # its own disk has lost it: no time mends that
                    raise OutputError(
                        f"{self.about.host} has lost the files of this run in {folder}: {reason}",
                        hint="see that nothing cleans TMPDIR there meanwhile; `cwtool study resume` runs it again",
                    ) from error
            if kind != said:
                text = f"{self.about.host} cannot keep the files of this run in {store or folder}: {reason}; the result stays"
                note = Note(f"{text} there, and is saved when that is mended; a cancel discards it", "warning")
                yield encode(EventReport(run_id=run_id, event=to_dict(note), time=time.time()))
                said = kind
            yield encode(Waiting())  # rightly, however long
            if self.cancels.wait_for_cancel(run_id, KEEP_AGAIN_S):
                raise Cancelled("cancelled while its result could not be saved; the result is discarded")

    def _next_reports(self, since: float) -> list[Report]:
        """The next report, with those that come within some time of the last ones; a heartbeat where none comes."""
        reports: list[Report] = []
        until = time.monotonic() + HEARTBEAT_S
        while True:
            wait_s = (since + TOGETHER_S if reports else until) - time.monotonic()
            try:
                report = self._reports.get(timeout=wait_s) if wait_s > 0 else self._reports.get_nowait()
            except queue.Empty:
                return reports or [Heartbeat(processor_s=self._processor_s())]
            if isinstance(report, (EventReport, Finished, Waiting)):  # what concerns a daemon alone goes no further
                reports.append(report)
            if isinstance(report, Finished):
                return reports

    def _obey(self, command: RunJob, errand: Errand, texts: CarriedTexts | None) -> None:
        """Do a run, in the thread that computes."""
        run_id = command.run_id
        try:
            self._texts_at = (texts, unpacked(texts, self._scratch)) if texts else None
            check_store(errand.store, self.about.host)
            if errand.away:
                check_paths(parse_spec(command.spec), errand.model_path, self.about.host)
            if errand.imported:  # also on this node, where Ray may have another state folder
                lend_import(command.spec["model"], errand.model_path)
            self._executor.result().obey(command)
        except CwaError as error:
            self._reports.put(Finished(run_id=run_id, error=error.to_dict(), ends=False))
        except BaseException as error:  # the run hears of it, and this actor is not used again
            failed = RunFailed(f"{type(error).__name__}: {error}", hint=f"the log of the actor is {self.about.log}")
            self._reports.put(Finished(run_id=run_id, error=failed.to_dict(), ends=True))

    def _here(self, spec: RunSpec) -> RunSpec:
        return read_from(spec, *self._texts_at) if self._texts_at else spec

    def _for_this_node(self, command: RunJob, folder: Path) -> RunJob:
        """The command with the cache and the memory of this node."""
        own = self._settings.limits()
        budget = own["budget_bytes"]
        limits = dataclasses.replace(
            command.limits,
            budget_bytes=None if budget is None else int(budget * self._share),
            share_bytes=self._share_bytes,
            **{name: own[name] for name in ("reserve_bytes", "load_bytes", "cache_folder", "cache_bytes")},
        )
        return dataclasses.replace(command, folder=str(folder), device=self.about.device, limits=limits)

    def _new_executor(self) -> Executor:
        clock = time.pthread_getcpuclockid(threading.get_ident())
        self._processor_s = lambda: time.clock_gettime(clock)  # of this thread: Ray's own compute a little all the time
        # Imports torch: from a slow shared disk that takes minutes, which the clock shows to be no stall.
        with without_collections():
            from cwa_daemon.worker.executor import Executor

        return Executor(self.about.device, self.cancels, _Reports(self._reports), leave=_stay, here=self._here)


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
    place = put_folder(folder, store) if store else ""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not store or path.name in TELLING}
    return RunFiles(run_id, files, fingerprint_of(folder) or "", place)


def _node_and_device(gpus: int) -> tuple[str, str]:
    """Ray's id of this node, and the device of this slot, which sees all of its node and is told which are its own."""
    import ray

    context = ray.get_runtime_context()
    own = context.get_accelerator_ids()["GPU"] if gpus else []
    return context.get_node_id(), "+".join(f"cuda:{number}" for number in own) or "cpu"


def _write_log(settings: Settings, slot: int) -> Path:
    """From now on what is printed goes into a log of this slot, where those of workers are. It outlives a Ray of our own."""
    path = settings.logs / f"ray-{socket.gethostname()}-{slot + 1}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    if os.fstat(handle).st_size > LOG_BYTES:
        os.ftruncate(handle, 0)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    return path


def _empty_folder(settings: Settings) -> Path:
    settings.empty_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings.empty_folder
