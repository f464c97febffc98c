"""Where things are and how long things may take: defaults < config file < environment (CWTOOL_...) < flags."""

from __future__ import annotations

import hashlib
import os
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cwa_engine import durations
from cwa_engine.errors import InvalidInput
from cwa_engine.files import user_path

MOST_SOCKET_BYTES = 103  # of its path: macOS takes no more, Linux takes 107
CONFIG_FILE = Path(platformdirs.user_config_dir("cwtool")) / "config.toml"


class Settings(BaseModel):
    """All settings of daemon and clients; `CWTOOL_HOME=/data/cwtool` sets `home`, and so on."""

    model_config = ConfigDict(extra="ignore")

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_state_dir("cwtool")))
    start_timeout_s: float = 20.0  # for the daemon to answer after it was started
    request_timeout_s: float = 10.0  # for a reply; the daemon answers within milliseconds unless it hangs
    cancel_grace_s: float = 10.0  # for a worker to stop between two batches before it is killed
    max_queue: int = 1000  # jobs that wait
    worker_silence_s: float = 60.0  # without a heartbeat, before a worker counts as hung and is killed
    stage_idle_s: float = 120.0  # a stage may neither compute nor say anything, before it counts as stuck
    stage_step_s: float = 21600.0  # a stage may compute without getting on, before it counts as stuck
    worker_idle_s: float = 300.0  # a worker without warm models waits for another job
    keep_alive: str = "30m"  # how long a model stays warm after its last use: 30m, 0, forever
    memory_budget_gb: float | None = None  # for the warm models of a device; None: what is free less the reserve
    memory_reserve_gb: float | None = None  # left free on each device; None: 1, or a tenth of a small one
    cache_gb: float = 1.0  # for scores that are kept between runs
    texts_gb: float = 1.0  # the most that a client may hand over at once, out of a pipe or from another machine
    listen: str | None = None  # tcp://HOST:PORT, for clients on other machines whose keys are allowed
    host: str | None = None  # of a client: the name of a daemon on another machine
    trust_remote_code: bool = False  # run code that comes with a model

    def __init__(self, **given: Any) -> None:
        """What is `given`, then the environment, then the config file. Raises InvalidInput, naming the setting."""
        try:
            super().__init__(**{**_config_file(), **_environment(type(self).model_fields), **given})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = first["loc"][0]
            raise InvalidInput(
                f"setting {name} is {first['input']!r}: {first['msg']}",
                hint=f"it is read from CWTOOL_{str(name).upper()} and {CONFIG_FILE}",
            ) from error

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, home: Path) -> Path:
        return user_path(str(home), "the state folder")

    @field_validator("keep_alive")
    @classmethod
    def _span_of_time(cls, text: str) -> str:
        durations.seconds(text)
        return text

    def limits(self) -> dict[str, Any]:
        """What a worker must know of these."""
        return {
            "keep_alive": self.keep_alive,
            "budget_bytes": None if self.memory_budget_gb is None else int(self.memory_budget_gb * 1e9),
            "reserve_bytes": None if self.memory_reserve_gb is None else int(self.memory_reserve_gb * 1e9),
            "cache_folder": str(self.home / "cache"),
            "cache_bytes": int(self.cache_gb * 1e9),
            "trust_remote_code": self.trust_remote_code,
        }

    @property
    def empty_folder(self) -> Path:
        """The working folder of the daemon and its workers: with nothing in it, no model or dataset is taken for a path."""
        return self.home / "empty"

    @property
    def runs(self) -> Path:
        """Where run folders are."""
        return self.home / "runs"

    @property
    def texts(self) -> Path:
        """Where texts are kept that clients handed over."""
        return self.home / "texts"

    @property
    def texts_bytes(self) -> int:
        return int(self.texts_gb * 1e9)

    @property
    def logs(self) -> Path:
        """Where the daemon and its workers write what they say."""
        return self.home / "logs"

    @property
    def daemon_log(self) -> Path:
        return self.logs / "daemon.log"

    @property
    def database(self) -> Path:
        return self.home / "jobs.sqlite"

    @property
    def lock_file(self) -> Path:
        """Held by the daemon of this state folder for as long as it lives; holds its process id."""
        return self.home / "daemon.lock"

    @property
    def address_file(self) -> Path:
        """Where the running daemon writes which socket it has, for shells that would look for it elsewhere."""
        return self.home / "daemon.json"

    @property
    def socket(self) -> Path:
        """Where a daemon that starts in this shell has its socket: a path that is short, one for each state folder.

        It is below XDG_RUNTIME_DIR where that is a folder of this user and not too long a path, else below /tmp.
        """
        key = hashlib.sha256(os.fsencode(self.home.absolute())).hexdigest()[:10]
        roots = [Path("/tmp") / f"cwtool-{os.getuid()}"]
        if base := _own_runtime_folder():
            roots.insert(0, base / "cwtool")
        sockets = [root / key / "daemon.sock" for root in roots]
        return next((path for path in sockets if len(os.fsencode(path)) <= MOST_SOCKET_BYTES), sockets[-1])

    @property
    def runtime_dir(self) -> Path:
        """The folder of that socket."""
        return self.socket.parent


def _config_file() -> dict[str, Any]:
    try:
        return tomllib.loads(CONFIG_FILE.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {CONFIG_FILE}: {error}", hint="mend it, or move it away") from error


def _environment(names: Iterable[str]) -> dict[str, str]:
    """Variables that are set; an empty one counts as unset."""
    found = {name: os.environ.get(f"CWTOOL_{name.upper()}") for name in names}
    return {name: value for name, value in found.items() if value}


def _own_runtime_folder() -> Path | None:
    """XDG_RUNTIME_DIR, which `sudo` and `su` may hand down to a user whose it is not."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if not given or not Path(given).is_absolute():
        return None
    try:
        found = Path(given).stat()
    except OSError:
        return None
    return Path(given) if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None
