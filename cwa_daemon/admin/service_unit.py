"""A systemd user unit, for a daemon that is there after every boot."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import OutputError
from cwa_engine.base.files import write_whole

NEXT = (
    "systemctl --user daemon-reload && systemctl --user enable --now cwtool",
    "loginctl enable-linger    # so that it goes on when you log out",
)


def unit_file() -> Path:
    """Where systemd looks for a user's units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user" / "cwtool.service"


def unit_text(settings: Settings) -> str:
    """The unit: this interpreter, this state folder, and no more rights than the daemon needs.

    No PrivateTmp: models, texts and --output may lie below /tmp, and are opened by the names that clients see. ProtectSystem
    is for root alone: nobody else can write there, and for others it takes a user namespace, in which all files of root
    seem to be nobody's, and which not every kernel allows.
    """
    for_root = "ProtectSystem=full\n" if os.getuid() == 0 else ""
    return f"""[Unit]
Description=cwtool: holds language models warm and serves analyses

[Service]
ExecStart={_quoted(sys.executable)} -m cwa_daemon.control.server
Environment={_quoted(f"CWTOOL_HOME={settings.home.absolute()}")}
Restart=on-failure
RestartSec=2
KillMode=mixed
LimitNOFILE=524288
NoNewPrivileges=yes
LockPersonality=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
{for_root}
[Install]
WantedBy=default.target
"""


def install(settings: Settings, force: bool) -> Path:
    """Write the unit file. Raises OutputError where another one is there, unless `force`."""
    target, text = unit_file(), unit_text(settings)
    if target.exists() and target.read_text("utf-8", errors="replace") != text and not force:
        raise OutputError(
            f"{target} is there already, and differs", hint="--force replaces it; --print shows the new one"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, text.encode())
    return target


def _quoted(word: str) -> str:
    """A word as systemd reads it: quoted, with % and $ taken as they are."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
