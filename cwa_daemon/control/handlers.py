"""What the daemon does with each request: one function for each message of `protocol.py`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cwa_daemon import protocol
from cwa_daemon.control import telemetry
from cwa_daemon.control.job import Job
from cwa_daemon.control.permissions import Caller, check_owner
from cwa_daemon.control.pruning import prune
from cwa_daemon.control.service import Service
from cwa_daemon.protocol import JobState
from cwa_engine import __version__
from cwa_engine.base.errors import Altered, InvalidInput, NotFound, StateDamaged
from cwa_engine.base.plain import JsonMap
from cwa_engine.data.datasets import parse_dataset
from cwa_engine.records.checksums import check_run
from cwa_engine.records.export import library_versions
from cwa_engine.records.reading import read_piece, read_summary, read_topk
from cwa_engine.rows import to_plain

Reply = JsonMap
Handler = Callable[[Service, Caller, Any], Awaitable[Reply | None]]
HANDLERS: dict[type[protocol.Request], Handler] = {}
# What lists runs or names one, also a run that another program has made just now.
NAMING_RUNS = (
    protocol.GetJob, protocol.ListJobs, protocol.ListResults, protocol.GetResult, protocol.GetTopK, protocol.ListFiles,
    protocol.GetFile, protocol.Mark, protocol.Subscribe, protocol.Retry,
)  # fmt: skip


def handles(request: type[protocol.Request]) -> Callable[[Handler], Handler]:
    """Register the one handler of a request."""

    def register(handler: Handler) -> Handler:
        HANDLERS[request] = handler
        return handler

    return register


@handles(protocol.Submit)
async def submit(service: Service, caller: Caller, request: protocol.Submit) -> Reply:
    spec = request.spec
    if caller.is_remote:
        _check_places(service, request)
    run_id = service.jobs.submit(
        request.kind,
        spec.model_dump(mode="json"),
        spec.device,
        request.client_key,
        request.command,
        request.access.model_dump(),
        request.options,
        owner=caller.name,
    )
    return {"run_id": run_id}


def _check_places(service: Service, request: protocol.Submit) -> None:
    """A client elsewhere may choose neither where this machine writes, nor which of its files are read as texts.

    Texts come by `keep_texts`; those that a job here has used already may be used again. Raises InvalidInput.
    """
    spec, chosen = request.spec, request.access.model_dump(exclude={"token"}, exclude_none=True)
    if spec.output:
        raise InvalidInput(
            f"the daemon of this machine does not write to {spec.output} for a client elsewhere",
            hint="leave the spec without `output`, and `fetch` the run's files when it is done",
        )
    if chosen:
        raise InvalidInput(f"a client elsewhere does not choose {', '.join(chosen)} here", hint="send only a token")
    if spec.dataset and parse_dataset(spec.dataset).path.startswith("/"):
        raise InvalidInput(
            f"{spec.dataset} is a folder of this machine", hint="hand its texts over, as the client does"
        )
    path = spec.data_file
    if path and not service.texts.holds(path) and str(path) not in service.store.data_files():
        raise InvalidInput(f"{path} was not handed over to this machine", hint="hand it over, as the client does")


@handles(protocol.KeepTexts)
async def keep_texts(service: Service, caller: Caller, request: protocol.KeepTexts) -> Reply:
    here, path = await service.texts.keep(request)
    return {"here": here, "path": str(path) if path else None}


@handles(protocol.Retry)
async def retry(service: Service, caller: Caller, request: protocol.Retry) -> Reply:
    job = _own(service, caller, request.run_id)
    access = request.access.model_dump()
    return {"run_id": service.jobs.retry(job.run_id, request.client_key, access, owner=caller.name)}


@handles(protocol.Cancel)
async def cancel(service: Service, caller: Caller, request: protocol.Cancel) -> Reply:
    job = _own(service, caller, request.run_id)
    return {"run_id": job.run_id, "before": job.state, "state": service.jobs.cancel(job.run_id)}


def _own(service: Service, caller: Caller, part: str) -> Job:
    """A job that the caller may touch. Raises Refused for one of somebody else."""
    job = service.jobs.find(part)
    check_owner(caller, job.run_id, job.owner)
    return job


@handles(protocol.GetJob)
async def get_job(service: Service, caller: Caller, request: protocol.GetJob) -> Reply:
    return {"job": service.jobs.view(service.jobs.find(request.run_id)).shown(caller.minor)}


@handles(protocol.ListJobs)
async def list_jobs(service: Service, caller: Caller, request: protocol.ListJobs) -> Reply:
    jobs, total = service.store.page(request.query), service.store.total(request.query)
    return {"jobs": [service.jobs.view(job).shown(caller.minor) for job in jobs], "total": total}


@handles(protocol.Mark)
async def mark(service: Service, caller: Caller, request: protocol.Mark) -> Reply:
    job = _own(service, caller, request.run_id)
    tags = protocol.with_tags(job.tags, request.add, request.remove)
    note = job.note if request.note is None else request.note
    service.store.mark(job.run_id, tags, note)
    return {"run_id": job.run_id, "marks": protocol.Marks(tags=tags, note=note).model_dump()}


@handles(protocol.ListMarks)
async def list_marks(service: Service, caller: Caller, request: protocol.ListMarks) -> Reply:
    return {"marks": {run_id: {"tags": tags, "note": note} for run_id, (tags, note) in service.store.marks().items()}}


@handles(protocol.Pause)
async def pause(service: Service, caller: Caller, request: protocol.Pause) -> Reply:
    if request.run_id:
        return {"run_ids": service.jobs.pause(_own(service, caller, request.run_id).run_id)}
    return {"run_ids": service.jobs.pause(None, caller.only_own)}


@handles(protocol.Resume)
async def resume(service: Service, caller: Caller, request: protocol.Resume) -> Reply:
    if request.run_id:
        return {"run_ids": service.jobs.resume(_own(service, caller, request.run_id).run_id)}
    return {"run_ids": service.jobs.resume(None, caller.only_own)}


@handles(protocol.Prune)
async def prune_jobs(service: Service, caller: Caller, request: protocol.Prune) -> Reply:
    runs = service.settings.runs
    pruned = prune(service.store, runs, request.older_than_s, request.with_results, request.dry_run)
    await service.texts.sweep()
    return pruned.model_dump()


@handles(protocol.Subscribe)
async def subscribe(service: Service, caller: Caller, request: protocol.Subscribe) -> None:
    run_id = service.jobs.find(request.run_id).run_id
    several = caller.minor >= protocol.SEVERAL_EVENTS_SINCE
    service.subscriptions.begin(caller.identity, request.id, run_id, request.after_seq, several)


@handles(protocol.Acknowledge)
async def acknowledge(service: Service, caller: Caller, request: protocol.Acknowledge) -> None:
    service.subscriptions.acknowledge(caller.identity, request.subscription, request.seq)


@handles(protocol.Unsubscribe)
async def unsubscribe(service: Service, caller: Caller, request: protocol.Unsubscribe) -> Reply:
    service.subscriptions.remove(caller.identity, request.subscription)
    return {}


@handles(protocol.GetStatus)
async def status(service: Service, caller: Caller, request: protocol.GetStatus) -> Reply:
    view = protocol.StatusView(
        version=__version__,
        pid=os.getpid(),
        uptime_s=time.time() - service.started,
        home=str(service.settings.home),
        queued=_count(service, JobState.QUEUED),
        running=_count(service, JobState.RUNNING),
        paused=_count(service, JobState.PAUSED),
        disk_full=service.store.disk_full,
        troubles=service.troubles.sentences(),
        limits=service.settings.shown_limits(),
        settings=service.in_force,
        versions=dict(library_versions()),
        models=service.jobs.dispatcher.warm_models(),
        workers=service.jobs.dispatcher.workers(),
        devices=service.latest_sample().devices,
        memory_bytes=telemetry.process_memory(os.getpid()) or 0,
        jobs_version=service.store.version,
    )
    return {"status": view.shown(caller.minor)}


def _count(service: Service, state: JobState) -> int | None:
    """How many jobs are in a state; None where the database is damaged, of which `troubles` say more."""
    try:
        return service.store.count(state)
    except StateDamaged:
        return None


@handles(protocol.GetTelemetry)
async def get_telemetry(service: Service, caller: Caller, request: protocol.GetTelemetry) -> Reply:
    return {"samples": [sample.model_dump() for sample in service.samples_after(request.after)]}


@handles(protocol.Unload)
async def unload(service: Service, caller: Caller, request: protocol.Unload) -> Reply:
    names = await service.jobs.dispatcher.unload(request.model)
    if not names:
        raise NotFound(f"{request.model} is not warm", hint="`cwtool ps` lists warm models")
    return {"names": names}


@handles(protocol.ListResults)
async def list_results(service: Service, caller: Caller, request: protocol.ListResults) -> Reply:
    done = service.store.jobs(limit=request.limit, state=JobState.DONE, kind="run")
    folders = [service.settings.runs / job.run_id for job in done]
    known = [(folder, service.store.fingerprint(folder.name)) for folder in folders]
    return {"results": await asyncio.to_thread(_summaries, known)}


def _summaries(runs: list[tuple[Path, str | None]]) -> list[JsonMap]:
    return [_summary_or_reason(folder, fingerprint) for folder, fingerprint in runs if folder.is_dir()]


def _summary_or_reason(folder: Path, fingerprint: str | None) -> JsonMap:
    """A run's summary; of one that is altered or cannot be read why: the others are to be listed all the same."""
    try:
        return read_summary(folder, fingerprint)
    except (Altered, NotFound) as error:
        return {"run_id": folder.name, "unreadable": error.message}


@handles(protocol.GetResult)
async def get_result(service: Service, caller: Caller, request: protocol.GetResult) -> Reply:
    folder = _finished(service, request.run_id)
    return {"folder": str(folder), "summary": read_summary(folder, service.store.fingerprint(folder.name))}


@handles(protocol.GetTopK)
async def get_topk(service: Service, caller: Caller, request: protocol.GetTopK) -> Reply:
    folder = _finished(service, request.run_id)
    fingerprint = service.store.fingerprint(folder.name)
    metric, rows = await asyncio.to_thread(
        read_topk, folder, request.metric, request.offset, request.limit, fingerprint
    )
    return {"run_id": folder.name, "metric": metric, "rows": to_plain(rows)}


@handles(protocol.ListFiles)
async def list_files(service: Service, caller: Caller, request: protocol.ListFiles) -> Reply:
    folder = _finished(service, request.run_id)
    fingerprint = service.store.fingerprint(folder.name)
    check = await asyncio.to_thread(check_run, folder, fingerprint)
    return {
        "run_id": folder.name,
        "folder": str(folder),
        "files": {name: (folder / name).stat().st_size for name in check.hashes},
        "check": to_plain(check),
        "fingerprint": fingerprint,
    }


@handles(protocol.GetFile)
async def get_file(service: Service, caller: Caller, request: protocol.GetFile) -> Reply:
    folder = _finished(service, request.run_id)
    data = await asyncio.to_thread(read_piece, folder, request.name, request.offset, protocol.PIECE_BYTES)
    known = {"folder": str(folder), "fingerprint": service.store.fingerprint(folder.name)} if not request.offset else {}
    return {"run_id": folder.name, "data": data, **known}


@handles(protocol.Shutdown)
async def shutdown(service: Service, caller: Caller, request: protocol.Shutdown) -> Reply:
    running = [worker.run_id for worker in service.jobs.dispatcher.workers() if worker.run_id]
    if request.when_idle:
        service.stop_when_idle()
        running = []
    else:
        asyncio.get_running_loop().call_soon(service.stopping.set)
    return {"pid": os.getpid(), "interrupted": running, "queued": _count(service, JobState.QUEUED) or 0}


def _finished(service: Service, part: str) -> Any:
    """The folder of a finished run; "latest" is the last one submitted of those that are done."""
    if part == "latest":
        done = service.store.jobs(limit=1, state=JobState.DONE, kind="run")
        if not done:
            raise NotFound("no run has finished yet", hint="`cwtool jobs` shows what runs")
        return service.settings.runs / done[0].run_id
    job = service.jobs.find(part)
    if job.state != JobState.DONE or job.kind != "run":
        what = f"is {job.state}" if job.kind == "run" else f"was only to {job.kind}"
        hint = job.error["message"] if job.error else f"`cwtool logs -f {job.run_id}` follows it"
        raise NotFound(f"{job.run_id} has no result: it {what}", hint=hint)
    return service.settings.runs / job.run_id
