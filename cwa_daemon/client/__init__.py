"""The only way in: `AsyncClient` for programs that wait on more than one thing, `Client` for those that do not.

with Client.connect() as client:
    run_id = client.submit(RunSpec(model="gpt2"))
    for event in client.follow(run_id):
        print(event["kind"])
    print(client.result(run_id).summary["baseline"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cwa_daemon.base import keys
    from cwa_daemon.base.roles import Role
    from cwa_daemon.base.settings import Settings
    from cwa_daemon.client.answers import Result, Stopped
    from cwa_daemon.client.async_client import AsyncClient
    from cwa_daemon.client.fetching import RunFiles
    from cwa_daemon.client.maintenance import examine, install_service, log_files, service_text
    from cwa_daemon.client.runner import DaemonRunner
    from cwa_daemon.client.start_stop import settings_not_taken, start_daemon, stop_daemon
    from cwa_daemon.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "Client",
    "DaemonRunner",
    "Result",
    "Role",
    "RunFiles",
    "Settings",
    "Stopped",
    "examine",
    "install_service",
    "keys",
    "log_files",
    "service_text",
    "settings_not_taken",
    "start_daemon",
    "stop_daemon",
]

# name -> the module that has it, imported when the name is asked for: who needs the settings alone need not wait for sockets.
_MODULES = {
    "AsyncClient": "client.async_client",
    "Client": "client.sync_client",
    "DaemonRunner": "client.runner",
    "Result": "client.answers",
    "Role": "base.roles",
    "RunFiles": "client.fetching",
    "Settings": "base.settings",
    "Stopped": "client.answers",
    "examine": "client.maintenance",
    "install_service": "client.maintenance",
    "log_files": "client.maintenance",
    "service_text": "client.maintenance",
    "settings_not_taken": "client.start_stop",
    "start_daemon": "client.start_stop",
    "stop_daemon": "client.start_stop",
}


def __getattr__(name: str) -> Any:
    if name == "keys":
        return importlib.import_module("cwa_daemon.base.keys")
    if name in _MODULES:
        return getattr(importlib.import_module(f"cwa_daemon.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
