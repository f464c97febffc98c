"""What the daemon does with each request: one function for each message of `protocol.py`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cwa_daemon import protocol, telemetry
from cwa_daemon.pruning import prune
from cwa_daemon.states import JobState
from cwa_engine import __version__
from cwa_engine.errors import NotFound
from cwa_engine.reporting.export import library_versions, read_piece, read_summary, read_topk
from cwa_engine.result import to_plain

if TYPE_CHECKING:
    from cwa_daemon.server import Server

Reply = dict[str, Any]
Handler = Callable[["Server", bytes, Any], Awaitable[Reply | None]]
HANDLERS: dict[type[protocol.Request], Handler] = {}


def handles(request: type[protocol.Request]) -> Callable[[Handler], Handler]:
    """Register the one handler of a request."""

    def register(handler: Handler) -> Handler:
        HANDLERS[request] = handler
        return handler

    return register


@handles(protocol.Submit)
async def submit(server: Server, identity: bytes, request: protocol.Submit) -> Reply:
    spec = request.spec
    device = telemetry.default_device() if spec.device == "auto" else "cuda:0" if spec.device == "cuda" else spec.device
    run_id = server.jobs.submit(
        request.kind,
        spec.model_dump(mode="json"),
        device,
        request.client_key,
        request.command,
        request.access.model_dump(),
        request.options,
    )
    return {"run_id": run_id}


@handles(protocol.KeepTexts)
async def keep_texts(server: Server, identity: bytes, request: protocol.KeepTexts) -> Reply:
    here, path = await server.texts.keep(request)
    return {"here": here, "path": str(path) if path else None}


@handles(protocol.Retry)
async def retry(server: Server, identity: bytes, request: protocol.Retry) -> Reply:
    return {"run_id": server.jobs.retry(request.run_id, request.client_key, request.access.model_dump())}


@handles(protocol.Cancel)
async def cancel(server: Server, identity: bytes, request: protocol.Cancel) -> Reply:
    job = server.jobs.find(request.run_id)
    return {"run_id": job["run_id"], "before": job["state"], "state": server.jobs.cancel(job["run_id"])}


@handles(protocol.GetJob)
async def get_job(server: Server, identity: bytes, request: protocol.GetJob) -> Reply:
    return {"job": server.jobs.view(server.jobs.find(request.run_id)).model_dump()}


@handles(protocol.ListJobs)
async def list_jobs(server: Server, identity: bytes, request: protocol.ListJobs) -> Reply:
    jobs = server.store.jobs(request.limit, request.state, request.kind, request.model, request.offset)
    return {"jobs": [server.jobs.view(job).model_dump() for job in jobs]}


@handles(protocol.Pause)
async def pause(server: Server, identity: bytes, request: protocol.Pause) -> Reply:
    return {"run_ids": server.jobs.pause(request.run_id)}


@handles(protocol.Resume)
async def resume(server: Server, identity: bytes, request: protocol.Resume) -> Reply:
    return {"run_ids": server.jobs.resume(request.run_id)}


@handles(protocol.Prune)
async def prune_jobs(server: Server, identity: bytes, request: protocol.Prune) -> Reply:
    runs = server.settings.runs
    pruned = prune(server.store, runs, request.older_than_s, request.with_results, request.dry_run)
    await server.texts.sweep()
    return pruned.model_dump()


@handles(protocol.Subscribe)
async def subscribe(server: Server, identity: bytes, request: protocol.Subscribe) -> Reply | None:
    run_id = server.jobs.find(request.run_id)["run_id"]
    number = server.subscriptions.add(identity, run_id, request.after_seq, server.takes_several_events(identity))
    server.send(identity, {"id": request.id, "ok": True, "subscription": number, "run_id": run_id})
    server.subscriptions.catch_up(number)  # after the reply, so that the client knows whose events these are
    return None


@handles(protocol.Acknowledge)
async def acknowledge(server: Server, identity: bytes, request: protocol.Acknowledge) -> None:
    server.subscriptions.acknowledge(identity, request.subscription, request.seq)


@handles(protocol.Unsubscribe)
async def unsubscribe(server: Server, identity: bytes, request: protocol.Unsubscribe) -> Reply:
    server.subscriptions.remove(identity, request.subscription)
    return {}


@handles(protocol.GetStatus)
async def status(server: Server, identity: bytes, request: protocol.GetStatus) -> Reply:
    view = protocol.StatusView(
        version=__version__,
        pid=os.getpid(),
        uptime_s=time.time() - server.started,
        home=str(server.settings.home),
        queued=server.store.count(JobState.QUEUED),
        running=server.store.count(JobState.RUNNING),
        paused=server.store.count(JobState.PAUSED),
        disk_full=server.store.disk_full,
        versions=dict(library_versions()),
        models=server.jobs.warm_models(),
        workers=server.jobs.workers(),
        devices=server.sample().devices,
        memory_bytes=telemetry.process_memory(os.getpid()) or 0,
    )
    return {"status": view.model_dump()}


@handles(protocol.GetTelemetry)
async def get_telemetry(server: Server, identity: bytes, request: protocol.GetTelemetry) -> Reply:
    return {"samples": [sample.model_dump() for sample in server.history]}


@handles(protocol.Unload)
async def unload(server: Server, identity: bytes, request: protocol.Unload) -> Reply:
    names = await server.jobs.unload(request.model)
    if not names:
        raise NotFound(f"{request.model} is not warm", hint="`cwtool ps` lists warm models")
    return {"names": names}


@handles(protocol.ListResults)
async def list_results(server: Server, identity: bytes, request: protocol.ListResults) -> Reply:
    done = server.store.jobs(limit=request.limit, state=JobState.DONE, kind="run")
    folders = [server.settings.runs / job["run_id"] for job in done]
    return {"results": [_summary_or_reason(folder) for folder in folders if folder.is_dir()]}


def _summary_or_reason(folder: Path) -> dict[str, Any]:
    """A run's summary; of one that cannot be read why: the others are to be listed all the same."""
    try:
        return read_summary(folder)
    except NotFound as error:
        return {"run_id": folder.name, "unreadable": error.message}


@handles(protocol.GetResult)
async def get_result(server: Server, identity: bytes, request: protocol.GetResult) -> Reply:
    folder = _finished(server, request.run_id)
    return {"folder": str(folder), "summary": read_summary(folder)}


@handles(protocol.GetTopK)
async def get_topk(server: Server, identity: bytes, request: protocol.GetTopK) -> Reply:
    folder = _finished(server, request.run_id)
    metric, rows = read_topk(folder, request.metric, request.offset, request.limit)
    return {"run_id": folder.name, "metric": metric, "rows": to_plain(rows)}


@handles(protocol.ListFiles)
async def list_files(server: Server, identity: bytes, request: protocol.ListFiles) -> Reply:
    folder = _finished(server, request.run_id)
    return {"run_id": folder.name, "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())}}


@handles(protocol.GetFile)
async def get_file(server: Server, identity: bytes, request: protocol.GetFile) -> Reply:
    folder = _finished(server, request.run_id)
    data = await asyncio.to_thread(read_piece, folder, request.name, request.offset, protocol.PIECE_BYTES)
    return {"run_id": folder.name, "data": data}


@handles(protocol.Shutdown)
async def shutdown(server: Server, identity: bytes, request: protocol.Shutdown) -> Reply:
    running = [worker.run_id for worker in server.jobs.workers() if worker.run_id]
    loop = asyncio.get_running_loop()
    if request.when_idle:
        server.draining = loop.create_task(server.jobs.drain())
        server.draining.add_done_callback(lambda _: server.stopping.set())
        running = []
    else:
        loop.call_soon(server.stopping.set)
    return {"pid": os.getpid(), "interrupted": running, "queued": server.store.count(JobState.QUEUED)}


def _finished(server: Server, part: str) -> Any:
    """The folder of a finished run; "latest" is the last one submitted of those that are done."""
    if part == "latest":
        done = server.store.jobs(limit=1, state=JobState.DONE, kind="run")
        if not done:
            raise NotFound("no run has finished yet", hint="`cwtool jobs` shows what runs")
        return server.settings.runs / done[0]["run_id"]
    job = server.jobs.find(part)
    if job["state"] != JobState.DONE or job["kind"] != "run":
        what = f"is {job['state']}" if job["kind"] == "run" else f"was only to {job['kind']}"
        hint = job["error"]["message"] if job["error"] else f"`cwtool logs -f {job['run_id']}` follows it"
        raise NotFound(f"{job['run_id']} has no result: it {what}", hint=hint)
    return server.settings.runs / job["run_id"]
