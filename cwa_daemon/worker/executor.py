"""What a worker does with a command: run, load, plan, pull, inspect, examine a weight, answer a prompt, save, unload."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from cwa_daemon.pipe.exit_codes import DEVICE_LOST, NO_DEVICE
from cwa_daemon.pipe.messages import Finished, Limits, Memory, RunJob, Unloaded, UnloadModel, Waiting
from cwa_daemon.pipe.place import WITHOUT_DEVICE
from cwa_daemon.worker.channels import Cancels, Reports
from cwa_daemon.worker.plans import make_plan
from cwa_daemon.worker.reporter import RunReporter
from cwa_daemon.worker.warm_models import WarmModel, WarmModels, still_computes
from cwa_engine.base import durations, events
from cwa_engine.base.cancellation import cancellable
from cwa_engine.base.errors import Cancelled, CwaError, InvalidInput, OutOfMemory, RunFailed, error_from_dict
from cwa_engine.hub.access import hub_access
from cwa_engine.hub.sources import HubAccess
from cwa_engine.inspection import weight_facts
from cwa_engine.local_run import model_record
from cwa_engine.machine.memory import take_share
from cwa_engine.models.failures import is_out_of_memory, is_panic
from cwa_engine.models.loading import model_on_disk, torch_device
from cwa_engine.models.memory import release
from cwa_engine.pipeline import analyze
from cwa_engine.prompt_spec import PromptSpec, spec_of_kind
from cwa_engine.prompting.answering import answer_prompt
from cwa_engine.questions.registry import check_ready
from cwa_engine.records.export import RunRecord, write_run
from cwa_engine.rows import ModelOnDisk
from cwa_engine.run import Stages
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.spec import RunSpec
from cwa_engine.weights.card import weight_card

SAVE_AGAIN_S = 2.0  # between two attempts to save what the disk did not take
_MEMORY_HINT = "try --dtype bfloat16 or a shorter --seq-len, or `cwtool unload` other models"


def _end_process(code: int) -> None:
    os._exit(code)


def _as_it_is(spec: RunSpec) -> RunSpec:
    return spec


class Executor:
    """Does the commands of one worker, one after the other, on its device and its warm models.

    `leave` ends the process, with an exit code, where it is of no use any more. `here` gives a run's spec with the paths that
    its texts have on this machine; the run's files tell of those that it was asked with.
    """

    def __init__(
        self,
        device: str,
        inbox: Cancels,
        outbox: Reports,
        leave: Callable[[int], None] = _end_process,
        here: Callable[[RunSpec], RunSpec] = _as_it_is,
    ) -> None:
        self.device = device
        self.warm = WarmModels(device, outbox.send)
        self._inbox = inbox
        self._outbox = outbox
        self._leave = leave
        self._here = here
        self._used: WarmModel | None = None  # by the job that runs

    def memory(self) -> Memory | None:
        """The device's memory; None where it is not known."""
        return self.warm.memory()

    def seconds_to_next_expiry(self) -> float | None:
        """How long to wait for a command before `expire` has something to do; None for as long as it takes."""
        return self.warm.seconds_to_next_expiry()

    def expire(self) -> None:
        """Unload what was not used for longer than it was to be kept, and tell what is warm."""
        self.warm.expire()

    def obey(self, command: RunJob | UnloadModel) -> None:
        match command:
            case RunJob():
                self._run(command)
            case UnloadModel():
                names = self.warm.unload(command.model)
                self._outbox.send(Unloaded(request=command.request, names=names))

    def _run(self, command: RunJob) -> None:
        """Do a job and say how it ended; no error of a job ends the worker."""
        self._used = None
        take_share(command.limits.share_bytes)
        error, device_lost = self._tried(command)
        if error and not device_lost:
            release()  # what the job took, for the checks need some
        if isinstance(error, OutOfMemory) and self._used:
            device_lost = not still_computes(self._used.model)
        if self._used:
            self._used.last_used = time.time()  # also by a job that failed or was cancelled
            self._used.suspect |= error is not None
        ends = DEVICE_LOST if device_lost else NO_DEVICE if error and not self._has_device() else 0
        self.expire()
        self._outbox.send(Finished(run_id=command.run_id, error=error.to_dict() if error else None, ends=bool(ends)))
        if device_lost:  # nothing computed on this device by this process can be trusted any more
            print("the device failed: this worker ends, and another takes its place", file=sys.stderr, flush=True)
        if ends:
            self._leave(ends)
        release()  # so that the next job finds it free

    def _tried(self, command: RunJob) -> tuple[CwaError | None, bool]:
        """(what ended a job too early, whether the device is lost). The error is a copy: the frames of the one that was
        raised hold all that the job had in memory."""
        device_lost = False
        report = RunReporter(command.run_id, self._inbox, self._outbox)
        try:
            with cancellable(report.check_cancelled):
                self._do(command, report)
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
            return self.device in WITHOUT_DEVICE.values() or bool(torch_device(self.device))
        except InvalidInput:
            return False

    def _do(self, command: RunJob, report: RunReporter) -> None:
        spec, limits = spec_of_kind(command.kind, command.spec), command.limits
        access = HubAccess(**command.access).filled_in()
        if command.kind == "plan":
            assert command.memory
            with Stages(report)("plan"):
                report(events.Planned(make_plan(spec, access, command.device, command.memory, limits)))
            return
        if command.kind == "pull":
            with Stages(report)("pull"):
                report(events.Pulled(_pulled(spec, access, limits, report)))
            return
        torch_device(self.device)  # raises where this machine lacks it
        started = time.time()
        stages = Stages(report)
        if command.kind == "run":
            assert isinstance(spec, RunSpec)
            with hub_access(access):
                check_ready(spec, limits.trust_remote_code)
        with stages("load"):
            resident = self._used = self.warm.get(spec, access, limits, report)
            resident.pinned |= command.options["pin"]
            resident.keep_alive_s = durations.seconds(command.options["keep_alive"] or limits.keep_alive)
        if command.kind == "load":
            return
        if command.kind == "inspect":
            with stages("inspect"):
                for target in spec.weights:
                    report(events.Inspected(weight_facts(resident.model, target)))
            return
        if command.kind == "weight":
            with hub_access(access):  # for the texts of a dataset
                report(events.CardMade(weight_card(resident.model, spec, report)))
            return
        if command.kind == "prompt":
            assert isinstance(spec, PromptSpec)
            with stages("prompt"):
                report(events.PromptAnswered(answer_prompt(resident.model, spec, report)))
            return
        resident.jobs_served += 1
        cache = ScoreCache(Path(limits.cache_folder), limits.cache_bytes, command.run_id)
        with hub_access(access):  # for the texts of a dataset
            kept = None if command.options["no_cache"] else cache
            result = analyze(resident.model, self._here(spec), report, kept, trust_code=limits.trust_remote_code)
        result = dataclasses.replace(result, timings={**stages.timings, **result.timings})
        record = RunRecord(
            run_id=command.run_id,
            spec=spec,
            command=command.command,
            # Its own name: another run may have loaded the model under a path, an alias or an imported name.
            model=dataclasses.replace(model_record(resident.model), name=spec.model),
            result=result,
            started=started,
            log=report.log,
        )
        with stages("save"):
            self._save(record, Path(command.folder), report)

    def _save(self, record: RunRecord, folder: Path, report: RunReporter) -> None:
        """Write the run's folder. Where the disk does not take it, keep the result and try again until cancelled."""
        said = ""
        while True:
            try:
                if not folder.is_dir():
                    write_run(folder, record)
                return
            except OSError as error:
                reason = error.strerror or str(error)  # without the name of the half file, which is another each time
            if reason != said:
                report.note(
                    f"cannot save: {reason}; the result is kept, and saved when that is mended; a cancel discards it",
                    "warning",
                )
                said = reason
            self._outbox.send(Waiting())  # rightly, however long
            if self._inbox.wait_for_cancel(record.run_id, SAVE_AGAIN_S):
                raise Cancelled("cancelled while its result could not be saved; the result is discarded")


def _named(error: BaseException, command: RunJob) -> CwaError:
    """What no stage of a job has given a name."""
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory in the {command.kind} of {command.spec['model']}", hint=_MEMORY_HINT)
    if is_panic(error):
        return RunFailed(
            f"a library panicked in the {command.kind} of {command.spec['model']}: {error}",
            hint="a tokenizer whose regular expressions are too much for these texts does that; "
            "the worker's log says more (`cwtool daemon logs`)",
        )
    return RunFailed(
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
        hint="this is a defect of cwtool or of a library; the traceback is in the worker's log (`cwtool daemon logs`)",
    )


def is_device_error(error: BaseException) -> bool:
    """Whether an accelerator failed otherwise than by lack of memory: its context is of no use any more."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def _pulled(spec: RunSpec, access: HubAccess, limits: Limits, report: RunReporter) -> ModelOnDisk:
    """A model whose files are on disk and complete, downloaded where they were not."""

    def read(done: int, total: int) -> None:
        report(events.Progress("pull", done, total, "byte"))

    return model_on_disk(spec.model, spec.revision, access, report.note, read, limits.trust_remote_code)
