"""A run in this process, from a spec to its report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cwa_engine.base.events import Emit, Event, Note, Progress, ignore, log_line, to_dict
from cwa_engine.models.in_memory import as_loaded, hashed
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.memory import device_name
from cwa_engine.pipeline import analyze
from cwa_engine.questions.registry import check_ready
from cwa_engine.records.export import ModelRecord, RunRecord
from cwa_engine.records.run_id import new_run_id
from cwa_engine.records.run_report import RunReport, report_of
from cwa_engine.run import Stages
from cwa_engine.spec import RunSpec


def run_here(
    spec: RunSpec,
    load: Callable[[Emit], LoadedModel],
    emit: Emit = ignore,
    texts: Sequence[str] | None = None,
    command: str = "",
    run_id: str = "",
    folder: Path | None = None,
) -> RunReport:
    """Load a model, analyse it as the spec says, and report. The stages and events are those of a run by the daemon.

    The model is afterwards as `load` gave it. With `folder` the run's own folder is written there, under its run id.
    Raises what `load` raises, and CwaErrors of the analysis and of writing.
    """
    log: list[str] = []

    def say(event: Event) -> None:
        if line := log_line(to_dict(event)):
            log.append(line)
        emit(event)

    started, stages = time.time(), Stages(say)
    check_ready(spec)
    with stages("load"):
        loaded = load(say)
    with as_loaded(loaded.model):
        loaded = hashed(loaded)
        result = analyze(loaded, spec, say, texts=texts)
    result = dataclasses.replace(result, timings={**stages.timings, **result.timings})
    record = RunRecord(
        run_id or new_run_id(spec.model), spec, command, model_record(loaded), result, started=started, log=log
    )
    with stages("save"):
        report = report_of(record)
        if folder:
            report.save(folder / report.run_id)
    return report


def load_for(spec: RunSpec, emit: Emit = ignore) -> LoadedModel:
    """The model that a spec names, on the device that it names."""
    return load_model(
        spec.model,
        spec.revision,
        spec.dtype,
        usual_device() if spec.device == "auto" else spec.device,
        spec.offload == "cpu",
        say=lambda text: emit(Note(text)),
        read=lambda done, total: emit(Progress("load", done, total, "byte")),
    )


def model_record(loaded: LoadedModel) -> ModelRecord:
    """What a run's files say about the model."""
    return ModelRecord(
        name=loaded.source.name,
        location=loaded.source.location,
        kind=loaded.source.kind,
        revision=loaded.revision,
        files=loaded.files,
        dtype=loaded.dtype,
        device=loaded.device_name,
        device_name=" + ".join(map(device_name, loaded.devices)),
        parameters=loaded.anatomy.numel,
        notes=loaded.notes,
    )


def usual_device() -> str:
    """Where a run with device "auto" goes: the NVIDIA device with most free memory, else the CPU."""
    free = [torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count())]
    return f"cuda:{free.index(max(free))}" if free else "cpu"
