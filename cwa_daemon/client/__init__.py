"""The only way in: `AsyncClient` for programs that wait on more than one thing, `Client` for those that do not.

with Client.connect() as client:
    run_id = client.submit(RunSpec(model="gpt2"))
    for event in client.follow(run_id):
        print(event["kind"])
    print(client.result(run_id).summary["baseline"])
"""

from __future__ import annotations

from cwa_daemon.client.answers import Result, Stopped
from cwa_daemon.client.async_client import AsyncClient
from cwa_daemon.client.fetching import RunFiles
from cwa_daemon.client.maintenance import examine, install_service, log_files, service_text
from cwa_daemon.client.runner import DaemonRunner
from cwa_daemon.client.start_stop import start_daemon, stop_daemon
from cwa_daemon.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "DaemonRunner",
    "Result",
    "RunFiles",
    "Stopped",
    "examine",
    "install_service",
    "log_files",
    "service_text",
    "start_daemon",
    "stop_daemon",
]
