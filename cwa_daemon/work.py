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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cwa_daemon.residency import ModelKey, Residency, Resident
from cwa_engine import durations, events
from cwa_engine.errors import Cancelled, CwaError, OutOfMemory, OutputError, OutputTaken, RunFailed
from cwa_engine.models.checksum import checksum
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.memory import free_bytes, release
from cwa_engine.models.sources import HubAccess, fingerprint, resolve
from cwa_engine.pipeline import analyze
from cwa_engine.planning import plan
from cwa_engine.reporting.export import ModelRecord, RunRecord, write_run
from cwa_engine.reporting.output import copy_run
from cwa_engine.run import Stages
from cwa_engine.score_cache import ScoreCache
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_daemon.worker import Inbox, Outbox

SAVE_AGAIN_S = 2.0  # between two attempts to save what the disk did not take
DEVICE_LOST = 70  # exit code of a worker whose device can no longer be trusted
PROGRESS_INTERVAL_S = 0.1  # no eye and no log needs progress more often than ten times a second


class Voice:
    """The `emit` of one run: sends events on, keeps the log's lines, and ends the run where it was cancelled."""

    def __init__(self, run_id: str, inbox: Inbox, outbox: Outbox, deaf: bool = False) -> None:
        self.run_id = run_id
        self._deaf = deaf  # to a cancel, for what is said after one
        self.log: list[str] = []
        self._inbox = inbox
        self._outbox = outbox
        self._last_progress = ("", 0.0)

    def __call__(self, event: events.Event) -> None:
        if self._inbox.is_cancelled(self.run_id) and not self._deaf:
            raise Cancelled("the run was cancelled")
        if isinstance(event, events.Progress) and not self._is_due(event):
            return
        body = events.to_dict(event)
        if line := events.describe(body):
            self.log.append(f"{time.strftime('%H:%M:%S')} {line}")
        self._outbox.send(type="event", run_id=self.run_id, event=body)

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
        error: CwaError | None = None
        self._used = None
        device_lost = False
        try:
            self._do_job(command, Voice(run_id, self._inbox, self._outbox))
        except CwaError as named:
            error = named
        except Exception as unexpected:
            traceback.print_exc()  # into the worker's log
            device_lost = is_device_error(unexpected)
            error = RunFailed(
                f"{type(unexpected).__name__}: {str(unexpected).splitlines()[0] if str(unexpected) else 'no message'}",
                hint="this is a defect of cwtool or of a library; the traceback is in the worker's log (`cwtool daemon logs`)",
            )
        if isinstance(error, OutOfMemory) and self._used:
            device_lost = not breathes(self._used.model)
        if error and self._used and not device_lost:
            self._verify(self._used, Voice(run_id, self._inbox, self._outbox, deaf=True))
        self.expire()
        self._outbox.send(type="finished", run_id=run_id, error=error.to_dict() if error else None)
        if device_lost:  # nothing computed on this device by this process can be trusted any more
            print("the device failed: this worker ends, and another takes its place", file=sys.stderr, flush=True)
            os._exit(DEVICE_LOST)

    def _do_job(self, command: dict[str, Any], voice: Voice) -> None:
        spec, options, limits = RunSpec.model_validate(command["spec"]), command["options"], command["limits"]
        access = HubAccess(**command["access"])
        if command["kind"] == "plan":
            voice(events.Planned(plan(spec, access, self.device, limits["trust_remote_code"])))
            return
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
            self._save(record, Path(command["folder"]), options["force"], voice)

    def _save(self, record: RunRecord, folder: Path, force: bool, voice: Voice) -> None:
        """Write the run's files. Where the disk does not take them, keep the result and try again until cancelled.

        Raises OutputTaken where somebody else has filled the output folder; the run folder is there then.
        """
        said = ""
        while True:
            try:
                if not folder.is_dir():
                    write_run(folder, record)
                if record.spec.output:
                    copy_run(folder, record.spec.output, force)
                return
            except OutputTaken:
                raise
            except (OSError, OutputError) as error:
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
            if self._inbox.wait_for_cancel(record.run_id, SAVE_AGAIN_S):
                raise Cancelled("cancelled while its result could not be saved; the result is discarded")

    def _verify(self, resident: Resident[LoadedModel], voice: Voice) -> None:
        """After a run that did not end well: whether the warm model's weights are those that were loaded."""
        if checksum(resident.model.model) != resident.checksum:
            self._warm.remove(resident)
            voice(events.Note(f"{resident.name} is unloaded: its weights are not as they were loaded", "warning"))

    def _warm_model(
        self, spec: RunSpec, access: HubAccess, limits: dict[str, Any], voice: Voice
    ) -> Resident[LoadedModel]:
        source = resolve(spec.model)
        key = ModelKey(source.location, spec.revision, spec.dtype, spec.offload, fingerprint(source))
        for warm in self._warm:  # a commit may be warm under the name of its branch
            if warm.model.revision == spec.revision and warm.key._replace(revision=spec.revision) == key:
                key = warm.key
        resident = self._warm.use(key)
        if resident:
            voice(events.Note(f"{spec.model} is warm"))
            return resident
        stale = [r for r in self._warm if r.key.location == key.location and r.key.fingerprint != key.fingerprint]
        if stale:
            voice(events.Note(f"{spec.model} is loaded again: its files have changed"))
            self._warm.drop({source.location})
        elif others := [r for r in self._warm if r.key.location == key.location]:
            voice(events.Note(f"{spec.model} is loaded: {_difference(key, others[-1].key)}"))
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
        resident = Resident(key, spec.model, loaded, loaded.size_bytes, checksum=checksum(loaded.model))
        self._warm.add(resident)
        self._say_models()
        return resident

    def _make_room(self, name: str, size_bytes: int, limits: dict[str, Any], voice: Voice) -> None:
        """Drop least recently used models until the new one fits. Raises DoesNotFit where that is not enough."""

        def free() -> int:
            return self._free_bytes() - int(limits["reserve_bytes"])

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


def _difference(asked: ModelKey, warm: ModelKey) -> str:
    """Why a warm copy does not serve: "dtype float16 asked, auto is warm"."""
    differences = [
        f"{name} {getattr(asked, name) or 'default'} asked, {getattr(warm, name) or 'default'} is warm"
        for name in ("revision", "dtype", "offload")
        if getattr(asked, name) != getattr(warm, name)
    ]
    return "; ".join(differences)


def is_device_error(error: BaseException) -> bool:
    """Whether an accelerator failed otherwise than by lack of memory: its context is of no use any more."""
    return isinstance(error, torch.AcceleratorError)


@torch.no_grad()
def breathes(loaded: LoadedModel) -> bool:
    """Whether a model still computes something after memory ran out: one token, forward."""
    release()
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
        return bool(torch.isfinite(loaded.model(input_ids=token, use_cache=False).logits).all())
    except (RuntimeError, MemoryError):
        return False


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
