"""Looking after this machine's daemon: its logs, `cwtool doctor`, and the systemd unit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from cwa_daemon.base.settings import Settings
from cwa_daemon.client.sync_client import Client
from cwa_engine.base.plain import JsonMap

if TYPE_CHECKING:  # who does not examine anything need not wait for it
    from cwa_daemon.admin.doctor import DaemonAnswer


def log_files(settings: Settings | None = None) -> list[Path]:
    """The daemon's log and those of its workers."""
    return sorted((settings or Settings()).logs.glob("*.log"))


def examine(settings: Settings | None = None, repair: bool = False, bundle: Path | None = None) -> JsonMap:
    """What `cwtool doctor` finds: `checks`, and what a repair has `repaired` before. Raises InvalidInput where it cannot."""
    from cwa_daemon.admin import bundle as zipped
    from cwa_daemon.admin import doctor, reindex

    if bundle:
        zipped.check_target(bundle)
    settings, wrong = (settings, []) if settings else Settings.usable()
    repaired = reindex.repair(settings) if repair else []
    checks = [dataclasses.asdict(check) for check in doctor.examine(settings, _ask, wrong)]
    if bundle:
        zipped.write_bundle(settings, checks, bundle)
    return {"repaired": repaired, "checks": checks}


def _ask(settings: Settings) -> DaemonAnswer:
    from cwa_daemon.admin.doctor import DaemonAnswer

    with Client.connect(settings.model_copy(update={"host": None}), start=False) as client:
        found = client.status()
        return DaemonAnswer(client.daemon_version, client.where, found.troubles, found.settings)


def install_service(force: bool) -> tuple[Path, tuple[str, ...]]:
    """Write the systemd user unit; gives its file and the commands to type next. Raises OutputError."""
    from cwa_daemon.admin import service_unit

    return service_unit.install(Settings(), force), service_unit.NEXT


def service_text() -> str:
    """The systemd user unit as it would be written."""
    from cwa_daemon.admin import service_unit

    return service_unit.unit_text(Settings())
