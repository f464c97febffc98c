"""A thread for each slot: it takes a run, gives it to its actor, writes down what that says, and brings the files home.

Ray brings a dead actor back, on another node where its own is gone. The run that it was at goes back to those that wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwa_daemon.cluster.actor import About, RunFiles, SlotActor, check_code, code_here
from cwa_daemon.cluster.home import LOOK_S, OwnRuns
from cwa_daemon.cluster.joining import Cluster, actor_environment, asked_threads
from cwa_daemon.cluster.scheduling import ModelName, Waiting, next_run
from cwa_daemon.cluster.slots import Shape
from cwa_daemon.pipe.messages import EventReport, Finished, RunJob, encode, report_reader
from cwa_engine.base.errors import (
    Altered,
    Cancelled,
    ClusterUnreachable,
    CwaError,
    StateNotWritten,
    VersionMismatch,
    WorkerDied,
)
from cwa_engine.base.events import Note, to_dict
from cwa_engine.base.files import scratch_path, sync_folder, write_synced
from cwa_engine.records.checksums import SUMS, check_run

MOST_DEATHS = 3  # of actors under one run
REMEMBERED = 8  # models that a slot counts as warm; the actor knows better, and loads what it has not
PATIENCE_S = 10.0  # before it is said that a slot waits for a place in the cluster


@dataclass
class Queued:
    """A run that is waited for or under way."""

    command: RunJob
    model: ModelName
    deaths: list[str] = field(default_factory=list)
    cancelled: bool = False

    @property
    def run_id(self) -> str:
        return self.command.run_id


class Board:
    """What waits, and what each slot has warm. All threads of slots look here."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self.usable: dict[int, bool] = {}  # slot -> whether its actor can be used; not there while that is not known
        self.refusals: list[CwaError] = []
        self._waiting: dict[str, Queued] = {}
        self._running: dict[int, Queued] = {}
        self._warm: dict[int, list[ModelName]] = {}

    def add(self, run: Queued, first: bool = False) -> None:
        with self.changed:
            self._waiting = {run.run_id: run, **self._waiting} if first else {**self._waiting, run.run_id: run}
            self.changed.notify_all()

    def take(self, slot: int) -> Queued | None:
        """The run that a slot begins now; waits for one. None once all is over."""
        with self.changed:
            while True:
                if self.closed:
                    return None
                waiting = [Waiting(run.run_id, run.model) for run in self._waiting.values()]
                others = {number: warm for number, warm in self._warm.items() if number != slot}
                if found := next_run(waiting, self._warm.get(slot, ()), others):
                    run = self._waiting.pop(found.run_id)
                    self._running[slot] = run
                    warm = [model for model in self._warm.get(slot, []) if model != run.model]
                    self._warm[slot] = [*warm, run.model][-REMEMBERED:]
                    return run
                self.changed.wait()

    def done(self, slot: int) -> None:
        with self.changed:
            self._running.pop(slot, None)

    def cold(self, slot: int) -> None:
        """The actor of a slot has died, with its models."""
        with self.changed:
            self._warm.pop(slot, None)

    def cancel(self, run_id: str) -> bool:
        """Take a run that waits away; one that is under way is marked. Whether it waited."""
        with self.changed:
            if self._waiting.pop(run_id, None):
                return True
            for run in self._running.values():
                run.cancelled |= run.run_id == run_id
            return False

    def drain(self) -> list[Queued]:
        """Take all that waits."""
        with self.changed:
            waiting, self._waiting = list(self._waiting.values()), {}
            return waiting

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


@dataclass(frozen=True)
class Slot:
    """An actor, as Ray has it, and what it takes."""

    number: int
    shape: Shape
    actor: Any


class Driving:
    """The slots of a cluster at work. `begin` waits until one can be used."""

    def __init__(
        self, cluster: Cluster, shapes: list[Shape], own: OwnRuns, runs: Path, store: str, say: Callable[[str], None],
        cancel_grace_s: float,
    ) -> None:  # fmt: skip
        self._cluster, self._own, self._runs, self._store, self._say = cluster, own, runs, store, say
        self._grace_s = cancel_grace_s
        self._board = Board()
        self._slots = [Slot(number, shape, self._actor(shape)) for number, shape in enumerate(shapes)]
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"cwtool slot {slot.number}", daemon=True)
            for slot in self._slots
        ]
        self._watch = threading.Thread(target=self._watch_cancels, name="cwtool cancels", daemon=True)

    # for whoever submits

    def begin(self) -> None:
        """Begin, and wait until a slot can be used. Raises the reason where none can: VersionMismatch for instance."""
        for thread in (*self._threads, self._watch):
            thread.start()
        board, said = self._board, False
        with board.changed:
            while not any(board.usable.values()):
                if len(board.usable) == len(self._slots):
                    raise board.refusals[0]
                if not board.changed.wait(PATIENCE_S) and not said:
                    said = True
                    self._say(
                        "waiting for a place in the cluster: its CPUs or GPUs are taken, or a node is still to come"
                    )

    def add(self, run: Queued) -> None:
        self._board.add(run)

    def cancel(self, run_id: str) -> None:
        if self._board.cancel(run_id):
            self._end(run_id, Cancelled("the run was cancelled"))

    def close(self) -> None:
        """End all actors; what has not ended is gone."""
        self._board.close()
        for slot in self._slots:
            self._kill(slot, for_good=True)
        for thread in (*self._threads, self._watch):
            if thread.ident:
                thread.join()

    # a slot

    def _actor(self, shape: Shape) -> Any:
        ray = self._cluster.ray
        cls = ray.remote(concurrency_groups={"control": 2})(SlotActor)
        return cls.options(
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
            max_restarts=-1,
            runtime_env={"env_vars": actor_environment(os.environ)},
        ).remote()

    def _work(self, slot: Slot) -> None:
        """The life of a slot's thread."""
        try:
            while not self._board.closed:
                about = self._ready(slot)
                if about is None:
                    return
                while (run := self._board.take(slot.number)) is not None:
                    try:
                        alive = self._do(slot, about, run)
                    finally:
                        self._board.done(slot.number)
                    if not alive:
                        self._board.cold(slot.number)
                        break
        except BaseException as error:  # a thread that ends unseen would leave its runs waiting for ever
            self._refuse(slot, error if isinstance(error, CwaError) else _named(error))

    def _ready(self, slot: Slot) -> About | None:
        """The actor once it is there; None where it can never be used, or all is over."""
        ray = self._cluster.ray
        threads = asked_threads(os.environ) or slot.shape.threads
        while not self._board.closed:
            asked = slot.actor.about.options(concurrency_group="control").remote(
                slot.shape.gpus, slot.shape.share, threads
            )
            try:
                about: About = ray.get(asked)
            except ray.exceptions.ActorUnavailableError:  # it is being brought back
                time.sleep(LOOK_S)
                continue
            except ray.exceptions.RayError as error:
                if not self._board.closed:
                    self._refuse(slot, _named(error))
                return None
            if wrong := check_code(about, code_here()):
                self._refuse(
                    slot,
                    VersionMismatch(
                        f"{about.host} has other code: {wrong}",
                        hint="a study is of one code: install the same versions on every node",
                    ),
                )
                self._kill(slot, for_good=True)
                return None
            with self._board.changed:
                self._board.usable[slot.number] = True
                self._board.changed.notify_all()
            return about
        return None

    def _refuse(self, slot: Slot, error: CwaError) -> None:
        """A slot that is of no use. Where no other is left, what waits ends with that."""
        with self._board.changed:
            began = any(self._board.usable.values())
            self._board.usable[slot.number] = False
            self._board.refusals.append(error)
            none_left = len(self._board.usable) == len(self._slots) and not any(self._board.usable.values())
            self._board.changed.notify_all()
        self._say(f"slot {slot.number + 1} of {len(self._slots)} is not used: {error.message}")
        if began and none_left:
            for run in self._board.drain():
                self._end(run.run_id, error)

    # a run

    def _do(self, slot: Slot, about: About, run: Queued) -> bool:
        """Have a run done; whether the actor lives on."""
        ray, run_id = self._cluster.ray, run.run_id
        self._own.move(run_id, "running")
        self._note(run_id, f"on {about.host}, slot {slot.number + 1} of {len(self._slots)}, {about.device}")
        reports = slot.actor.run.options(num_returns="streaming").remote(encode(run.command), self._store)
        following = _Following(ray, slot.actor, reports, run, self._grace_s)
        brought: RunFiles | None = None
        try:
            for said in following:
                if isinstance(said, RunFiles):
                    brought = said
                    continue
                for report in report_reader().feed(said):
                    if isinstance(report, EventReport):
                        self._own.say(run_id, report.event | {"time": report.time})
                    elif isinstance(report, Finished):
                        if report.error:
                            self._end(run_id, _error(report.error))
                        else:
                            self._bring_home(run_id, brought)
                        if report.ends:
                            self._kill(slot, for_good=False)
                        return not report.ends
        except _Stuck:
            self._end(run_id, Cancelled("the run was cancelled, and its actor ended, for it did not stop in time"))
            self._kill(slot, for_good=False)
            return False
        except CwaError as error:  # of bringing it home
            self._end(run_id, error)
            return True
        except ray.exceptions.RayError as error:
            if self._board.closed:
                return False
            self._died(run, about, error)
            return False
        raise AssertionError(f"{run_id} ended without a word")

    def _died(self, run: Queued, about: About, error: BaseException) -> None:
        """The actor died under a run: others may do better, a few times."""
        why = f"the actor on {about.host} died: {_first_line(error)}"
        run.deaths.append(why)
        if run.cancelled:
            self._end(run.run_id, Cancelled("the run was cancelled"))
        elif len(run.deaths) < MOST_DEATHS:
            self._own.move(run.run_id, "queued")
            self._note(run.run_id, f"{why}; the run is queued again", "warning")
            self._board.add(run, first=True)
        else:
            self._end(
                run.run_id,
                WorkerDied(
                    f"{MOST_DEATHS} actors died under this run: {'; '.join(dict.fromkeys(run.deaths))}",
                    hint="`ray logs` says more; want of memory does that: try --dtype bfloat16, or fewer slots on a node",
                ),
            )

    def _bring_home(self, run_id: str, brought: RunFiles | None) -> None:
        """Keep the files of a run that is done. Raises CwaError where they are not whole, or cannot be written."""
        if brought is None or brought.run_id != run_id:
            raise Altered(f"the files of {run_id} did not come", hint="resume the study")
        if hashlib.sha256(brought.files.get(SUMS, b"")).hexdigest() != brought.fingerprint:
            raise Altered(f"the list of hashes of {run_id} did not come as it was written", hint="resume the study")
        if not brought.place:
            _write_folder(self._runs / run_id, brought)
        self._own.move(run_id, "done", fingerprint=brought.fingerprint, place=brought.place)

    def _end(self, run_id: str, error: CwaError) -> None:
        state = "cancelled" if isinstance(error, Cancelled) else "failed"
        self._own.move(run_id, state, error=error.to_dict())  # type: ignore[arg-type]

    def _note(self, run_id: str, text: str, level: str = "info") -> None:
        self._own.say(run_id, to_dict(Note(text, level)) | {"time": time.time()})

    def _kill(self, slot: Slot, for_good: bool) -> None:
        with contextlib.suppress(self._cluster.ray.exceptions.RayError, ValueError):  # it is dead already
            self._cluster.ray.kill(slot.actor, no_restart=for_good)

    def _watch_cancels(self) -> None:
        """Look, while this process drives, for runs that another process wants to end."""
        while not self._board.closed:
            for run_id in self._own.home.asked_to_cancel():
                if self._own.get(run_id):
                    self.cancel(run_id)
                    self._own.home.forget_cancel(run_id)
            with self._board.changed:
                self._board.changed.wait_for(lambda: self._board.closed, LOOK_S)


class _Stuck(Exception):
    """A run that was cancelled does not stop."""


class _Following:
    """What an actor says of a run, as it comes. A cancelled run is told so once, and given some time."""

    def __init__(self, ray: Any, actor: Any, reports: Any, run: Queued, grace_s: float) -> None:
        self._ray, self._actor, self._reports, self._run = ray, actor, reports, run
        self._grace_s = grace_s
        self._told: float | None = None

    def __iter__(self) -> _Following:
        return self

    def __next__(self) -> bytes | RunFiles:
        """Raises _Stuck, and RayError where the actor is gone."""
        while not self._ray.wait([self._reports], timeout=LOOK_S)[0]:
            self._see_to_cancel()
        self._see_to_cancel()
        said: bytes | RunFiles = self._ray.get(next(self._reports))
        return said

    def _see_to_cancel(self) -> None:
        if not self._run.cancelled:
            return
        if self._told is None:
            self._told = time.monotonic()
            self._actor.cancel.options(concurrency_group="control").remote(self._run.run_id)
        elif time.monotonic() - self._told > self._grace_s:
            raise _Stuck


def _write_folder(folder: Path, brought: RunFiles) -> None:
    """Write the files of a run under a temporary name, compare them with their hashes, and rename the folder."""
    scratch = scratch_path(folder)
    try:
        scratch.mkdir(parents=True)
        for name, content in brought.files.items():
            if "/" in name or name.startswith("."):
                raise Altered(f"{name!r} is no file of a run", hint="look at that node")
            write_synced(scratch / name, content)
        if altered := check_run(scratch, brought.fingerprint).altered:
            raise Altered(
                f"the files of {folder.name} did not come as they were written: {altered}", hint="resume the study"
            )
        scratch.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise StateNotWritten(
            f"{folder} cannot be written: {error.strerror}", hint="make room there, and resume the study with --retry"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _error(body: Mapping[str, object]) -> CwaError:
    from cwa_engine.base.errors import error_from_dict

    return error_from_dict(dict(body))


def _named(error: BaseException) -> CwaError:
    """What Ray says of an actor that does not come, in words of ours."""
    text = str(error)
    if isinstance(error.__cause__, CwaError):
        return error.__cause__
    if "ModuleNotFoundError" in text or "No module named" in text:
        return VersionMismatch(
            f"a node has no cwtool: {_last_line(text)}", hint="install the same cwtool, with [cluster], on every node"
        )
    return ClusterUnreachable(
        f"an actor cannot be used: {_first_line(error)}", hint="`ray status` and `ray logs` say more"
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)
