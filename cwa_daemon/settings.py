"""Where things are and how long things may take: defaults < config file < environment (CWTOOL_...) < flags."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

CONFIG_FILE = Path(platformdirs.user_config_dir("cwtool")) / "config.toml"


class Settings(BaseSettings):
    """All settings of daemon and clients; `CWTOOL_HOME=/data/cwtool` sets `home`, and so on."""

    model_config = SettingsConfigDict(env_prefix="CWTOOL_", toml_file=CONFIG_FILE, extra="ignore")

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_state_dir("cwtool")))
    start_timeout_s: float = 20.0  # for the daemon to answer after it was started
    request_timeout_s: float = 10.0  # for a reply; the daemon answers within milliseconds unless it hangs
    cancel_grace_s: float = 10.0  # for a worker to stop between two batches before it is killed
    max_queue: int = 1000  # queued jobs

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def runs(self) -> Path:
        """Where run folders are."""
        return self.home / "runs"

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
    def runtime_dir(self) -> Path:
        """The folder of the socket: short, for a socket path may have 107 bytes, and one for each state folder."""
        key = hashlib.sha256(str(self.home.absolute()).encode()).hexdigest()[:10]
        return _runtime_root() / key

    @property
    def socket(self) -> Path:
        return self.runtime_dir / "daemon.sock"


def _runtime_root() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir():
        return Path(base) / "cwtool"
    return Path("/tmp") / f"cwtool-{os.getuid()}"
