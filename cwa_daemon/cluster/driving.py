"""A thread for each slot: it takes a run, gives it to its actor, writes down what that says, and has the files brought home.

Ray brings a dead actor back, on another node where its own is gone. The run that it was at goes back to those that wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cwa_daemon.base.settings import Settings
from cwa_daemon.cluster.actor import SlotActor
from cwa_daemon.cluster.board import Board, Queued
from cwa_daemon.cluster.carried import local_model, texts_of
from cwa_daemon.cluster.following import Stuck, follow
from cwa_daemon.cluster.home import LOOK_S, OwnRuns
from cwa_daemon.cluster.homecoming import Homecoming
from cwa_daemon.cluster.joining import Cluster, actor_environment, asked_threads, first_line
from cwa_daemon.cluster.messages import About, Errand, Place, RunFiles, code_here, other_code
from cwa_daemon.cluster.slots import Shape
from cwa_daemon.pipe.messages import EventReport, Finished, encode
from cwa_engine.base.errors import (
    Cancelled,
    ClusterUnreachable,
    CwaError,
    RunFailed,
    VersionMismatch,
    WorkerDied,
    error_from_dict,
)
from cwa_engine.hub.imported import imported_path

log = logging.getLogger(__name__)

MOST_DEATHS = 3  # of actors under one run
PATIENCE_S = 10.0  # before it is said that no actor is there yet
ANSWER_S = 10.0  # for an actor to say that it lives
LEAVE_S = 2.0  # for actors to remove what they have on their disks, when all is over
_AGAIN = "this is a defect of cwtool or of a library; `cwtool study resume` runs it again"
_DAEMON_LOG = "the worker's log (`cwtool daemon logs`)"  # as the executor calls it


@dataclass(frozen=True)
class Slot:
    """An actor, as Ray has it, and what it takes."""

    number: int
    shape: Shape
    actor: Any


class Driving:
    """The slots of a cluster at work. `begin` waits until one can be used. `runs` is the folder of run folders."""

    def __init__(
        self, cluster: Cluster, shapes: list[Shape], own: OwnRuns, runs: Path, store: str, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._own, self._store, self._say = cluster, own, store, say
        self._settings = Settings()
        self._board = Board(len(shapes))
        self._homecoming = Homecoming(own, runs, self._board)
        self._carried: dict[tuple[object, ...], Any] = {}  # texts that were put into Ray's store of objects
        self._carrying = threading.Lock()
        self._slots = [Slot(number, shape, self._actor(shape)) for number, shape in enumerate(shapes)]
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"cwtool slot {slot.number}", daemon=True)
            for slot in self._slots
        ]
        self._threads.append(threading.Thread(target=self._watch_cancels, name="cwtool cancels", daemon=True))

    # for whoever submits

    @property
    def has_gpus(self) -> bool:
        return any(slot.shape.gpus for slot in self._slots)

    def begin(self) -> None:
        """Begin, and wait until a slot can be used. Raises the reason where none can: VersionMismatch for instance."""
        for thread in self._threads:
            thread.start()
        board = self._board
        with board.changed:
            ready = lambda: board.any_usable or board.no_slot_left or board.closed  # noqa: E731
            if not board.changed.wait_for(ready, PATIENCE_S):
                self._say(
                    "waiting for the first actor: it is starting, or CPUs and GPUs are taken, or a node is still to come"
                )
                board.changed.wait_for(ready)
            if not board.any_usable and board.refusals:
                raise board.refusals[0]

    def add(self, run: Queued) -> None:
        if refusal := self._board.add(run):
            self._end(run.run_id, refusal)

    def cancel(self, run_id: str) -> None:
        if self._board.cancel(run_id):
            self._end(run_id, Cancelled("the run was cancelled"))

    def close(self) -> None:
        """End all actors; what has not ended is gone."""
        self._board.close()
        ray = self._cluster.ray
        with contextlib.suppress(ray.exceptions.RayError):  # of actors that are gone
            idle = self._board.usable
            left = [
                slot.actor.leave.options(concurrency_group="control").remote()
                for slot in self._slots
                if slot.number in idle
            ]
            if left:
                ray.wait(left, num_returns=len(left), timeout=LEAVE_S)
        for slot in self._slots:
            self._kill(slot, for_good=True)
        for thread in self._threads:
            if thread.ident:
                thread.join()

    # a slot

    def _actor(self, shape: Shape) -> Any:
        made = self._cluster.ray.remote(concurrency_groups={"control": 2})(SlotActor)
        return made.options(
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
            max_restarts=-1,
            runtime_env={"env_vars": actor_environment(os.environ)},
        ).remote()

    def _work(self, slot: Slot) -> None:
        """The life of a slot's thread: one actor after the other, and with each one run after the other."""
        try:
            while about := self._ready(slot):
                alive = True
                while alive and (run := self._board.take(slot.number)):
                    try:
                        alive = self._lives(slot, about)
                        if alive:
                            alive = self._do(slot, about, run)
                        else:
                            self._put_back(run, f"the actor on {about.host} was lost before this run began")
                    finally:
                        self._board.free(slot.number, cold=not alive)
        except BaseException as error:  # a thread that ends unseen would leave runs waiting for ever
            self._refuse(slot, error if isinstance(error, CwaError) else _named(error))

    def _ready(self, slot: Slot) -> About | None:
        """The actor once it is there; None where it can never be used, or all is over."""
        ray, place = self._cluster.ray, self._place(slot)
        while not self._board.closed:
            try:
                about: About = ray.get(slot.actor.about.options(concurrency_group="control").remote(place))
            except ray.exceptions.ActorUnavailableError:  # Ray is about to bring it back
                self._board.pause(LOOK_S)
                continue
            except ray.exceptions.RayError as error:
                if not self._board.closed:
                    self._refuse(slot, _named(error))
                return None
            if wrong := other_code(about.code, code_here()):
                self._kill(slot, for_good=True)
                hint = "a study is of one code: install the same versions on every node"
                self._refuse(slot, VersionMismatch(f"{about.host} has other code: {wrong}", hint=hint))
                return None
            self._board.use(slot.number)
            return about
        return None

    def _lives(self, slot: Slot, about: About) -> bool:
        """Whether the actor is the process that it was, after it had nothing to do. Of one that hangs `follow` will tell."""
        ray = self._cluster.ray
        try:
            asked = slot.actor.about.options(concurrency_group="control").remote(self._place(slot))
            now: About = ray.get(asked, timeout=ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            return True
        except ray.exceptions.RayError:
            return False
        return (now.node, now.pid) == (about.node, about.pid)

    def _place(self, slot: Slot) -> Place:
        shape = slot.shape
        return Place(slot.number, shape.gpus, shape.share, shape.threads, asked_threads(os.environ))

    def _refuse(self, slot: Slot, error: CwaError) -> None:
        """Go on without a slot. What waits ends with the reason where no other is left."""
        self._say(f"slot {slot.number + 1} of {len(self._slots)} is not used: {error.message}")
        for run in self._board.refuse(slot.number, error):
            self._end(run.run_id, error)

    # a run

    def _do(self, slot: Slot, about: About, run: Queued) -> bool:
        """Have a run done; whether the actor lives on."""
        ray, run_id = self._cluster.ray, run.run_id
        self._own.move(run_id, "running")
        self._own.note(
            run_id,
            f"on {about.host}, slot {slot.number + 1} of {len(self._slots)} ({about.device}, process {about.pid})",
        )
        try:
            return self._done(slot, about, run)
        except CwaError as error:  # of what it needs, or of its files
            self._end(run_id, error)
            return True
        except Stuck as stuck:
            self._kill(slot, for_good=False)
            self._died(run, f"the actor on {about.host} was ended: {stuck}", about)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError):  # it lives, in a state that nobody knows
                self._kill(slot, for_good=False)
            if not self._board.closed:
                self._died(run, f"the actor on {about.host} died: {_how_it_died(ray, error)}", about)
        except Exception as error:  # a defect; a run that nobody ends would be waited for for ever
            log.exception("%s: the driver failed", run_id)
            self._kill(slot, for_good=False)
            said = f"{type(error).__name__}: {first_line(error)}"
            self._end(run_id, RunFailed(f"what came of this run could not be taken: {said}", hint=_AGAIN))
        return False

    def _done(self, slot: Slot, about: About, run: Queued) -> bool:
        """The same, but for actors that die. Raises CwaError where the run cannot begin, or its files are not whole."""
        away = about.node != self._cluster.node
        said = slot.actor.run.options(num_returns="streaming").remote(
            self._errand(run, away), self._texts(run) if away else None
        )
        brought: RunFiles | None = None
        for report in follow(self._cluster.ray, slot.actor, said, run, self._settings):
            if isinstance(report, RunFiles):
                brought = report
            elif isinstance(report, EventReport):
                self._own.say(run.run_id, report.event | {"time": report.time})
            elif isinstance(report, Finished):
                if report.error:
                    self._end(run.run_id, _of_the_actor(error_from_dict(report.error), about))
                else:
                    self._homecoming.bring(run, brought, about.host, away)
                if report.ends:
                    self._kill(slot, for_good=False)
                return not report.ends
        raise RunFailed(
            f"{run.run_id} ended without a word", hint=f"{about.host} has the log of its actor: {about.log}"
        )

    def _errand(self, run: Queued, away: bool) -> Errand:
        model = local_model(run.spec.model)
        # Another node reaches the Hub in its own way, but for a token that is set here.
        token = {"token": os.environ["HF_TOKEN"]} if os.environ.get("HF_TOKEN") else {}
        command = replace(run.command, access=token) if away else run.command
        imported = model is not None and imported_path(model.name) is not None
        return Errand(encode(command), self._store, away, model.location if model else "", imported)

    def _texts(self, run: Queued) -> Any:
        """A reference to the texts of a run, which Ray brings to the node; None where they are everywhere. Raises DataError."""
        spec = run.spec
        stamp = spec.data_file.stat().st_mtime_ns if spec.data_file and spec.data_file.exists() else 0
        key = (spec.data_file, stamp, spec.dataset, spec.text_column, spec.eval_limit)
        with self._carrying:
            if key not in self._carried:
                texts = texts_of(spec, self._settings.texts_bytes)
                self._carried[key] = self._cluster.ray.put(texts) if texts else None
            return self._carried[key]

    def _died(self, run: Queued, why: str, about: About) -> None:
        """The actor died under a run: others may do better, a few times."""
        run.deaths.append(why)
        if run.cancelled:
            self._end(run.run_id, Cancelled("the run was cancelled"))
        elif len(run.deaths) >= MOST_DEATHS:
            reasons = "; ".join(dict.fromkeys(run.deaths))
            hint = (
                f"{about.log} on {about.host} says more; want of memory does that: try --dtype bfloat16, or fewer slots"
            )
            self._end(run.run_id, WorkerDied(f"{len(run.deaths)} actors died under this run: {reasons}", hint=hint))
        else:
            self._put_back(run, why)

    def _put_back(self, run: Queued, why: str) -> None:
        """Let a run wait again, before all others."""
        self._own.move(run.run_id, "queued")
        self._own.note(run.run_id, f"{why}; the run is queued again", "warning")
        if refusal := self._board.add(run, first=True):
            self._end(run.run_id, refusal)

    def _end(self, run_id: str, error: CwaError) -> None:
        self._own.move(run_id, "cancelled" if isinstance(error, Cancelled) else "failed", error=error.to_dict())

    def _kill(self, slot: Slot, for_good: bool) -> None:
        with contextlib.suppress(self._cluster.ray.exceptions.RayError, ValueError):  # it is dead already
            self._cluster.ray.kill(slot.actor, no_restart=for_good)

    def _cancel_asked(self, run_id: str) -> None:
        """Asked for until the run has ended, for a first look may come before the run is on the board."""
        if record := self._own.get(run_id):
            if record.ended:
                self._own.home.forget_cancel(run_id)
            else:
                self.cancel(run_id)

    def _watch_cancels(self) -> None:
        """Look, while this process drives, for runs that another process wants to end."""
        while not self._board.closed:
            try:
                for run_id in self._own.home.asked_to_cancel():
                    self._cancel_asked(run_id)
            except OSError as error:  # a network drive; others must be heard when it answers again
                log.warning("what other processes want to cancel cannot be read: %s", error)
            self._board.pause(LOOK_S)


def _how_it_died(ray: Any, error: BaseException) -> str:
    """In words, as far as Ray knows."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "its node ran out of memory"
    if isinstance(error, ray.exceptions.RayActorError):  # which says at length that it does not know
        return "its process was ended, or its node was lost"
    return first_line(error)


def _of_the_actor(error: CwaError, about: About) -> CwaError:
    """An error of an executor, which knows only the daemon's log, and not on which node it is."""
    error.hint = error.hint.replace(_DAEMON_LOG, f"{about.log} on {about.host}")
    return error


def _named(error: BaseException) -> CwaError:
    """What Ray says of an actor that does not come, in words of ours."""
    if isinstance(error.__cause__, CwaError):
        return error.__cause__
    if "ModuleNotFoundError" in str(error):
        lacking = next(line.strip() for line in reversed(str(error).splitlines()) if "ModuleNotFoundError" in line)
        hint = "install the same cwtool, with [cluster], on every node"
        return VersionMismatch(f"a node has no cwtool that could be used: {lacking}", hint=hint)
    return ClusterUnreachable(f"an actor cannot be used: {first_line(error)}", hint="`ray status` says more")
