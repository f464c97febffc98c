"""What a worker does with a command: load, analyse, save, unload. Runs in the worker process only."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from cwa_daemon.pipe.exit_codes import DEVICE_LOST, NO_DEVICE
from cwa_daemon.pipe.place import PLANS
from cwa_daemon.worker.inbox import Inbox
from cwa_daemon.worker.outbox import Outbox
from cwa_daemon.worker.plans import make_plan
from cwa_daemon.worker.residency import ModelKey, Residency, Resident
from cwa_engine.base import durations, events
from cwa_engine.base.cancellation import cancellable
from cwa_engine.base.errors import (
    Cancelled,
    CwaError,
    DoesNotFit,
    InvalidInput,
    OutOfMemory,
    RunFailed,
    error_from_dict,
)
from cwa_engine.hub.access import hub_access
from cwa_engine.hub.sources import HubAccess, SourceKind, fingerprint, resolve
from cwa_engine.machine.memory import available_memory
from cwa_engine.machine.memory_limit import memory_limit
from cwa_engine.models.checksum import checksum
from cwa_engine.models.failures import is_out_of_memory, is_panic
from cwa_engine.models.loading import LoadedModel, load_model, torch_device
from cwa_engine.models.memory import free_bytes, release, usual_reserve_bytes
from cwa_engine.pipeline import analyze
from cwa_engine.planning import IMPORTED_BYTES
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.run import Stages
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.spec import RunSpec

SAVE_AGAIN_S = 2.0  # between two attempts to save what the disk did not take
_MEMORY_HINT = "try --dtype bfloat16 or a shorter --seq-len, or `cwtool unload` other models"
PROGRESS_INTERVAL_S = 0.2  # no follower hears of it more often


class Voice:
    """The `emit` of one run: sends events on, keeps the log's lines, and ends the run where it was cancelled."""

    def __init__(self, run_id: str, inbox: Inbox, outbox: Outbox) -> None:
        self.run_id = run_id
        self.log: list[str] = []
        self._inbox = inbox
        self._outbox = outbox
        self._last_progress = ("", 0.0)

    def __call__(self, event: events.Event) -> None:
        self.check_cancelled()
        if isinstance(event, events.Progress) and not self._is_due(event):
            return
        body = events.to_dict(event)
        if line := events.describe(body):
            self.log.append(f"{time.strftime('%H:%M:%S')} {line}")
        self._outbox.send(type="event", run_id=self.run_id, event=body)

    def check_cancelled(self) -> None:
        """Raises Cancelled where the run is not wanted any more."""
        if self._inbox.is_cancelled(self.run_id):
            raise Cancelled("the run was cancelled")

    def _is_due(self, progress: events.Progress) -> bool:
        stage, last = self._last_progress
        now = time.monotonic()
        if stage == progress.stage and progress.done < progress.total and now - last < PROGRESS_INTERVAL_S:
            return False
        self._last_progress = (progress.stage, now)
        return True


class Work:
    """The state of a worker: its device and its warm models."""

    def __init__(self, device: str, inbox: Inbox, outbox: Outbox) -> None:
        self.device = device
        self._inbox = inbox
        self._outbox = outbox
        self._warm: Residency[LoadedModel] = Residency()
        self._used: Resident[LoadedModel] | None = None  # by the job that runs

    def memory(self) -> dict[str, int] | None:
        """Bytes of the device that are free, and that this process holds there beside its libraries; None: not known."""
        try:
            if self.device.startswith("cuda"):
                if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    return None
                held = torch.cuda.memory_reserved(self.device)
            elif self.device == PLANS:
                return None
            else:
                held = max(0, psutil.Process().memory_info().rss - IMPORTED_BYTES)
            return {"free": free_bytes(torch.device(self.device)), "held": held}
        except (RuntimeError, OSError, MemoryError, psutil.Error):  # the job says so, and the heartbeat goes on
            return None

    def seconds_to_next_expiry(self) -> float | None:
        """How long to wait for a command before `expire` has something to do; None for as long as it takes."""
        wait_s = self._warm.next_expiry - time.time()
        return None if math.isinf(wait_s) else max(0.0, wait_s)

    def expire(self) -> None:
        """Unload what was not used for longer than it was to be kept."""
        expired = self._warm.expire(time.time())
        for resident in expired:
            print(f"unloaded {resident.name}: not used for {resident.keep_alive_s:.0f} s", flush=True)  # into the log
        if expired:
            release()
        self._say_models()

    def obey(self, command: dict[str, Any]) -> None:
        match command["op"]:
            case "job":
                self._job(command)
            case "unload":
                self._unload(command)

    def _job(self, command: dict[str, Any]) -> None:
        """Run a job and say how it ended; no error of a job ends the worker."""
        run_id = command["run_id"]
        self._used = None
        error, device_lost = self._tried(command)
        if error and not device_lost:
            release()  # what the job took, for the checks need some
        if isinstance(error, OutOfMemory) and self._used:
            device_lost = not breathes(self._used.model)
        if error and self._used:
            self._used.suspect = True
        ends = DEVICE_LOST if device_lost else NO_DEVICE if error and not self._has_device() else 0
        self.expire()
        self._outbox.send(type="finished", run_id=run_id, error=error.to_dict() if error else None, ends=bool(ends))
        if device_lost:  # nothing computed on this device by this process can be trusted any more
            print("the device failed: this worker ends, and another takes its place", file=sys.stderr, flush=True)
        if ends:
            os._exit(ends)
        release()  # so that the next job finds it free

    def _tried(self, command: dict[str, Any]) -> tuple[CwaError | None, bool]:
        """(what ended a job too early, whether the device is lost). The error is a copy: the frames of the one that was
        raised hold all that the job had in memory."""
        device_lost = False
        voice = Voice(command["run_id"], self._inbox, self._outbox)
        try:
            with cancellable(voice.check_cancelled):
                self._do_job(command, voice)
            return None, False
        except CwaError as named:
            error = named
        except BaseException as unexpected:
            if not isinstance(unexpected, Exception) and not is_panic(unexpected):
                raise
            traceback.print_exc()  # into the worker's log
            device_lost = is_device_error(unexpected)
            error = _named(unexpected, command)
        return error_from_dict(error.to_dict()), device_lost

    def _has_device(self) -> bool:
        try:
            return self.device == PLANS or bool(torch_device(self.device))
        except InvalidInput:
            return False

    def _do_job(self, command: dict[str, Any], voice: Voice) -> None:
        spec, options, limits = RunSpec.model_validate(command["spec"]), command["options"], command["limits"]
        access = HubAccess(**command["access"]).filled_in()
        if command["kind"] == "plan":
            voice(events.Planned(make_plan(spec, access, command["device"], command["memory"], limits)))
            return
        torch_device(self.device)  # raises where this machine lacks it
        started = time.time()
        stages = Stages(voice)
        with stages("load"):
            resident = self._used = self._warm_model(spec, access, limits, voice)
            resident.pinned |= options["pin"]
            resident.keep_alive_s = durations.seconds(options["keep_alive"] or limits["keep_alive"])
        if command["kind"] == "load":
            return
        resident.jobs_served += 1
        cache = ScoreCache(Path(limits["cache_folder"]), limits["cache_bytes"], command["run_id"])
        with hub_access(access):  # for the texts of a dataset
            result = analyze(resident.model, spec, voice, None if options["no_cache"] else cache)
        resident.last_used = time.time()
        result = dataclasses.replace(result, timings={**stages.timings, **result.timings})
        record = RunRecord(
            run_id=command["run_id"],
            spec=spec,
            command=command["command"],
            model=model_record(resident.model),
            result=result,
            started=started,
            log=voice.log,
        )
        with stages("save"):
            self._save(record, Path(command["folder"]), voice)

    def _save(self, record: RunRecord, folder: Path, voice: Voice) -> None:
        """Write the run's folder. Where the disk does not take it, keep the result and try again until cancelled."""
        said = ""
        while True:
            try:
                if not folder.is_dir():
                    write_run(folder, record)
                return
            except OSError as error:
                reason = str(error)
            if reason != said:
                voice(
                    events.Note(
                        f"cannot save: {reason}; the result is kept, and saved when that is mended "
                        f"(`cwtool jobs cancel {record.run_id}` discards it)",
                        "warning",
                    )
                )
                said = reason
            self._outbox.send(type="waiting")  # rightly, however long
            if self._inbox.wait_for_cancel(record.run_id, SAVE_AGAIN_S):
                raise Cancelled("cancelled while its result could not be saved; the result is discarded")

    def _is_intact(self, resident: Resident[LoadedModel], voice: Voice) -> bool:
        """Whether a warm model's weights are those that were loaded; after a run that did not end well that is looked at.

        It takes a second for 150 million weights, too long for who waits for a run to be cancelled.
        """
        why = _doubt(resident) if resident.suspect else ""
        if why:
            self._warm.remove(resident)
            voice(events.Note(f"{resident.name} is unloaded: {why}", "warning"))
        else:
            resident.suspect = False
        return not why

    def _warm_model(
        self, spec: RunSpec, access: HubAccess, limits: dict[str, Any], voice: Voice
    ) -> Resident[LoadedModel]:
        source = resolve(spec.model)
        key = ModelKey(source.location, spec.revision, spec.dtype, spec.offload, fingerprint(source))
        if source.kind is SourceKind.HUB:
            key = key._replace(hub=access.place)
        for warm in self._warm:  # a commit may be warm under the name of its branch
            if warm.model.revision == spec.revision and warm.key._replace(revision=spec.revision) == key:
                key = warm.key
        resident = self._warm.use(key)
        if resident and self._is_intact(resident, voice):
            voice(events.Note(f"{spec.model} is warm"))
            return resident
        stale = [r for r in self._warm if r.key.location == key.location and r.key.fingerprint != key.fingerprint]
        if stale:
            voice(events.Note(f"{spec.model} is loaded again: its files have changed"))
            self._warm.drop({source.location})
        elif others := [r for r in self._warm if r.key.location == key.location]:
            voice(events.Note(f"{spec.model} is loaded: {_difference(key, others[-1].key)}"))
        with self._load_limit(spec.model, limits.get("load_bytes")):
            loaded = load_model(
                spec.model,
                spec.revision,
                spec.dtype,
                self.device,
                spec.offload == "cpu",
                access,
                say=lambda text: voice(events.Note(text)),
                make_room=lambda size_bytes: self._make_room(spec.model, size_bytes, limits, voice),
                read=lambda done, total: voice(events.Progress("load", done, total, "byte")),
                trust_remote_code=limits["trust_remote_code"],
            )
        release()  # what loading took beside the weights
        resident = Resident(
            key, spec.model, loaded, loaded.size_bytes, checksum=checksum(loaded.model), access=access.shown()
        )
        self._warm.add(resident)
        self._say_models()
        return resident

    @contextlib.contextmanager
    def _load_limit(self, name: str, most_bytes: int | None) -> Iterator[None]:
        """The memory of this machine that a load may take: what was set, else what is available.

        A device's driver reserves memory of this machine as well, nobody knows how much: there only what was set counts.
        """
        if most_bytes is None and self.device != "cpu":
            yield
            return
        try:
            with memory_limit(available_memory().free_bytes if most_bytes is None else most_bytes):
                yield
        except OutOfMemory as error:
            if most_bytes is None or isinstance(error, DoesNotFit):
                raise
            raise _beyond_limit(f"loading {name} takes more", most_bytes) from error

    def _make_room(self, name: str, size_bytes: int, limits: dict[str, Any], voice: Voice) -> None:
        """Drop least recently used models until the new one fits. Raises DoesNotFit where that is not enough."""
        most = limits.get("load_bytes")
        if most is not None and size_bytes > most:
            raise _beyond_limit(f"{name} takes {size_bytes / 1e9:,.2f} GB", most)
        asked = limits["reserve_bytes"]
        reserve = usual_reserve_bytes(torch.device(self.device)) if asked is None else asked

        def free() -> int:
            return max(0, self._free_bytes() - reserve)

        for dropped in self._warm.make_room(name, size_bytes, limits["budget_bytes"] or math.inf, free):
            used = f"last used {time.time() - dropped.last_used:.0f} s ago"
            voice(events.Note(f"unloaded {dropped.name} ({used}) to make room for {name}"))

    def _free_bytes(self) -> int:
        release()
        return free_bytes(torch.device(self.device))

    def _unload(self, command: dict[str, Any]) -> None:
        names = {command["model"]}
        with contextlib.suppress(CwaError):  # no model may exist by that name now, but a warm one still carry it
            names.add(resolve(command["model"]).location)
        dropped = [resident.name for resident in self._warm.drop(names)]
        release()  # the memory comes back before the word does
        self._say_models()
        self._outbox.send(type="unloaded", request=command["request"], names=dropped)

    def _say_models(self) -> None:
        self._outbox.send(
            type="models",
            memory=self.memory(),
            again=[self._load_again(resident) for resident in self._warm if resident.pinned],
            models=[
                {
                    "name": resident.name,
                    "revision": resident.model.revision,
                    "dtype": resident.model.dtype,
                    "device": str(resident.model.device),
                    "parameters": resident.model.anatomy.numel,
                    "size_bytes": resident.size_bytes,
                    "loaded": resident.loaded,
                    "last_used": resident.last_used,
                    "jobs_served": resident.jobs_served,
                    "expires": None if math.isinf(resident.expires) else resident.expires,
                    "pinned": resident.pinned,
                }
                for resident in self._warm
            ],
        )

    def _load_again(self, resident: Resident[LoadedModel]) -> dict[str, Any]:
        """What brings a pinned model back after this process has ended otherwise than it should."""
        key = resident.key
        spec = {"revision": key.revision, "dtype": key.dtype, "offload": key.offload, "device": self.device}
        return {"spec": {"model": resident.name, **spec}, "access": resident.access}


def _beyond_limit(what: str, most_bytes: int) -> DoesNotFit:
    return DoesNotFit(
        f"{what}, and a load may take {most_bytes / 1e9:,.2f} GB",
        hint="CWTOOL_LOAD_MEMORY_GB, where the daemon runs, sets how much that is",
    )


def _difference(asked: ModelKey, warm: ModelKey) -> str:
    """Why a warm copy does not serve: "dtype float16 asked, auto is warm"."""
    differences = [
        f"{name} {getattr(asked, name) or 'default'} asked, {getattr(warm, name) or 'default'} is warm"
        for name in ("revision", "dtype", "offload", "hub")
        if getattr(asked, name) != getattr(warm, name)
    ]
    return "; ".join(differences)


def _doubt(resident: Resident[LoadedModel]) -> str:
    """Why the weights may not be those that were loaded; empty where they are."""
    try:
        return "" if checksum(resident.model.model) == resident.checksum else "its weights are not as they were loaded"
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        return "no memory is left to see whether its weights are as they were loaded"


def _named(error: BaseException, command: dict[str, Any]) -> CwaError:
    """What no stage of a job has given a name."""
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory in the {command['kind']} of {command['spec']['model']}", hint=_MEMORY_HINT)
    if is_panic(error):
        return RunFailed(
            f"a library panicked in the {command['kind']} of {command['spec']['model']}: {error}",
            hint="a tokenizer whose regular expressions are too much for these texts does that; "
            "the worker's log says more (`cwtool daemon logs`)",
        )
    return RunFailed(
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
        hint="this is a defect of cwtool or of a library; the traceback is in the worker's log (`cwtool daemon logs`)",
    )


def is_device_error(error: BaseException) -> bool:
    """Whether an accelerator failed otherwise than by lack of memory: its context is of no use any more."""
    return isinstance(error, torch.AcceleratorError)


@torch.no_grad()
def breathes(loaded: LoadedModel) -> bool:
    """Whether a model still computes something after memory ran out: one token, forward. It need not have room for it."""
    release()
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
        return bool(torch.isfinite(loaded.model(input_ids=token, use_cache=False).logits).all())
    except (RuntimeError, MemoryError) as failure:
        return is_out_of_memory(failure)


def model_record(loaded: LoadedModel) -> ModelRecord:
    """What the run's files say about the model."""
    cuda = loaded.device.type == "cuda"
    return ModelRecord(
        name=loaded.source.name,
        location=loaded.source.location,
        kind=loaded.source.kind,
        revision=loaded.revision,
        files=loaded.files,
        dtype=loaded.dtype,
        device=str(loaded.device),
        device_name=torch.cuda.get_device_name(loaded.device) if cuda else platform.processor() or platform.machine(),
        parameters=loaded.anatomy.numel,
        notes=loaded.notes,
    )
