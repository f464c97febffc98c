"""Handing a job to the daemon: its texts, where the daemon cannot read them, its options, and how to reach the Hub."""

from __future__ import annotations

import dataclasses
import os
import uuid

from cwa_daemon.base.settings import Settings
from cwa_daemon.base.threads import in_thread
from cwa_daemon.client import handover
from cwa_daemon.client.connection import Connection
from cwa_daemon.protocol import JobOptions
from cwa_engine.base.plain import JsonMap
from cwa_engine.hub.sources import HubAccess
from cwa_engine.spec import RunSpec


async def with_texts(connection: Connection, spec: RunSpec) -> RunSpec:
    """The spec with texts that the daemon can read: it is handed a copy of those that it cannot."""
    away, most_bytes = bool(connection.settings.host), connection.settings.texts_bytes
    found = await in_thread(lambda: handover.prepare(spec, away, most_bytes))
    if found is None:
        return spec
    path = await handover.send(found, connection.request)
    read_there = {"data_file": path, "data_name": found.shown, "dataset": None, "text_column": found.text_column}
    return spec.model_copy(update=read_there)


async def submit_job(
    connection: Connection,
    kind: str,
    spec: RunSpec,
    command: str,
    options: JobOptions | None = None,
    client_key: str | None = None,
    offline: bool = False,
) -> str:
    """Queue a job and give its run id. With `offline` it does not ask the Hub, whatever the shell has set."""
    access = access_of_shell(connection.settings)
    reply = await connection.request(
        "submit",
        kind=kind,
        spec=spec.model_dump(mode="json"),
        client_key=client_key or uuid.uuid4().hex,
        command=command,
        access=access | {"offline": True} if offline else access,
        options=(options or JobOptions()).model_dump(exclude_defaults=True),  # a daemon may know fewer of them
    )
    return str(reply["run_id"])


def access_of_shell(settings: Settings) -> JsonMap:
    """How to reach the Hub, as this shell has it. Of another machine its own, but for a token that is set here."""
    if settings.host and not os.environ.get("HF_TOKEN"):
        return {}
    access = HubAccess.from_environment()
    return {"token": access.token} if settings.host else dataclasses.asdict(access)
