"""What a worker does with a command: load, analyse, save, unload. Runs in the worker process only."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import platform
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cwa_daemon.residency import ModelKey, Residency, Resident
from cwa_engine import events
from cwa_engine.errors import Cancelled, CwaError, RunFailed
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.memory import free_bytes
from cwa_engine.models.sources import HubAccess, fingerprint, resolve
from cwa_engine.pipeline import analyze
from cwa_engine.planning import plan
from cwa_engine.reporting.export import ModelRecord, RunRecord, copy_run, write_run
from cwa_engine.run import Stages
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_daemon.worker import Inbox, Outbox

PROGRESS_INTERVAL_S = 0.1  # no eye and no log needs progress more often than ten times a second


class Voice:
    """The `emit` of one run: sends events on, keeps the log's lines, and ends the run where it was cancelled."""

    def __init__(self, run_id: str, inbox: Inbox, outbox: Outbox) -> None:
        self.run_id = run_id
        self.log: list[str] = []
        self._inbox = inbox
        self._outbox = outbox
        self._last_progress = ("", 0.0)

    def __call__(self, event: events.Event) -> None:
        if self._inbox.is_cancelled(self.run_id):
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
        try:
            self._do_job(command, Voice(run_id, self._inbox, self._outbox))
        except CwaError as named:
            error = named
        except Exception as unexpected:
            traceback.print_exc()  # into the worker's log
            error = RunFailed(
                f"{type(unexpected).__name__}: {str(unexpected).splitlines()[0] if str(unexpected) else 'no message'}",
                hint="this is a defect of cwtool or of a library; the traceback is in the worker's log (`cwtool daemon logs`)",
            )
        self._say_models()
        self._outbox.send(type="finished", run_id=run_id, error=error.to_dict() if error else None)

    def _do_job(self, command: dict[str, Any], voice: Voice) -> None:
        spec = RunSpec.model_validate(command["spec"])
        if command["kind"] == "plan":
            voice(events.Planned(plan(spec, HubAccess(**command["access"]), self.device)))
            return
        started = time.time()
        stages = Stages(voice)
        with stages("load"):
            resident = self._warm_model(spec, HubAccess(**command["access"]), voice)
        if command["kind"] == "load":
            return
        resident.jobs_served += 1
        result = analyze(resident.model, spec, voice)
        result = dataclasses.replace(result, timings={**stages.timings, **result.timings})
        with stages("save"):
            record = RunRecord(
                run_id=command["run_id"],
                spec=spec,
                command=command["command"],
                model=model_record(resident.model),
                result=result,
                started=started,
                log=voice.log,
            )
            folder = Path(command["folder"])
            write_run(folder, record)
            if spec.output:
                copy_run(folder, spec.output)

    def _warm_model(self, spec: RunSpec, access: HubAccess, voice: Voice) -> Resident[LoadedModel]:
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
        voice(events.Progress("load", 0, 1, "model"))
        loaded = load_model(
            spec.model,
            spec.revision,
            spec.dtype,
            self.device,
            spec.offload == "cpu",
            access,
            say=lambda text: voice(events.Note(text)),
            make_room=lambda size_bytes: self._make_room(size_bytes, voice),
        )
        voice(events.Progress("load", 1, 1, "model"))
        resident = Resident(key, spec.model, loaded)
        self._warm.add(resident)
        self._say_models()
        return resident

    def _make_room(self, size_bytes: int, voice: Voice) -> None:
        """Drop least recently used models until the new one fits with its gradients, about its own size again."""
        for dropped in self._warm.make_room(2 * size_bytes, self._free_bytes):
            voice(events.Note(f"unloaded {dropped.name} to make room"))

    def _free_bytes(self) -> int:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return free_bytes(torch.device(self.device))

    def _unload(self, command: dict[str, Any]) -> None:
        names = {command["model"]}
        with contextlib.suppress(CwaError):  # no model may exist by that name now, but a warm one still carry it
            names.add(resolve(command["model"]).location)
        dropped = [resident.name for resident in self._warm.drop(names)]
        self._free_bytes()  # gives the memory back before the word does
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
                    "size_bytes": resident.model.size_bytes,
                    "loaded": resident.loaded,
                    "last_used": resident.last_used,
                    "jobs_served": resident.jobs_served,
                }
                for resident in self._warm
            ],
        )


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
    )
