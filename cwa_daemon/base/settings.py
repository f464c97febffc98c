"""Where things are and how long things may take: defaults < config file < environment (CWTOOL_...) < flags."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from cwa_engine.base import durations, places
from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.files import user_path
from cwa_engine.base.places import read_config, usual_state_folder
from cwa_engine.base.plain import JsonMap

MOST_SOCKET_BYTES = 103  # of its path: macOS takes no more, Linux takes 107


NOWHERE = Path("/nonexistent/cwtool")  # the state folder of who has no home folder and has set none
T = TypeVar("T")
Seconds = Annotated[FiniteFloat, Field(gt=0)]
Gigabytes = Annotated[FiniteFloat, Field(ge=0)]


class Settings(BaseModel):
    """All settings of daemon and clients; `CWTOOL_HOME=/data/cwtool` sets `home`, and so on."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True)

    home: Path = Field(default_factory=usual_state_folder)
    start_timeout_s: Seconds = 20.0  # for the daemon to answer after it was started
    request_timeout_s: Seconds = 10.0  # for a reply; the daemon answers within milliseconds unless it hangs
    cancel_grace_s: Seconds = 10.0  # for a worker to stop between two batches before it is killed
    max_queue: int = Field(default=1000, ge=1)  # jobs that wait
    worker_silence_s: Seconds = 60.0  # without a heartbeat, before a worker counts as hung and is killed
    stage_idle_s: Seconds = 120.0  # a stage may neither compute nor say anything, before it counts as stuck
    stage_step_s: Seconds = 21600.0  # a stage may compute without getting on, before it counts as stuck
    worker_idle_s: Seconds = 300.0  # a worker without warm models waits for another job
    cpu_lanes: int = Field(default=1, ge=1, le=128)  # how many jobs compute on the CPU at once, each in its own worker
    keep_alive: str = "30m"  # how long a model stays warm after its last use: 30m, 0, forever
    memory_budget_gb: Gigabytes | None = None  # for the warm models of a device; None: what is free less the reserve
    memory_reserve_gb: Gigabytes | None = None  # left free on each device; None: 1, or a tenth of a small one
    load_memory_gb: Gigabytes | None = None  # that the loading of a model may take; None: what is available
    cache_gb: Gigabytes = 1.0  # for scores that are kept between runs
    texts_gb: Gigabytes = 1.0  # the most that a client may hand over at once, out of a pipe or from another machine
    listen: str | None = None  # tcp://HOST:PORT, for clients on other machines whose keys are allowed
    host: str | None = None  # of a client: the name of a daemon on another machine
    trust_remote_code: bool = False  # run code that comes with a model

    def __init__(self, **given: Any) -> None:
        """What is `given`, then the environment, then the config file. Raises InvalidInput, naming the setting."""
        try:
            super().__init__(**{**read_config(), **_environment(), **given})
        except ValidationError as error:
            raise _refused(error, given) from error

    @classmethod
    def usable(cls) -> tuple[Settings, list[InvalidInput]]:
        """The settings less those that cannot be, and what is wrong with each of these: for `cwtool doctor`."""
        problems, settings = [], cls.model_construct(home=NOWHERE)
        try:
            settings.home = usual_state_folder()
        except InvalidInput as error:
            if not _environment().get("home"):
                problems.append(error)
        for source in (read_config, _environment):
            try:
                found = source()
            except InvalidInput as error:
                problems.append(error)
                continue
            for name, value in found.items():
                try:
                    if name in cls.model_fields:
                        setattr(settings, name, value)
                    else:
                        problems.append(_unknown(name))
                except ValidationError as error:
                    problems.append(_refused(error, {}))
        return settings, problems

    @field_validator("home", mode="before")
    @classmethod
    def _absolute_home(cls, home: Path | str) -> Path:
        return _or_value_error(lambda: user_path(str(home), "the state folder"))

    @field_validator("keep_alive")
    @classmethod
    def _span_of_time(cls, text: str) -> str:
        _or_value_error(lambda: durations.seconds(text))
        return text

    def limits(self) -> JsonMap:
        """What a worker must know of these."""
        return {
            "keep_alive": self.keep_alive,
            "budget_bytes": None if self.memory_budget_gb is None else int(self.memory_budget_gb * 1e9),
            "reserve_bytes": None if self.memory_reserve_gb is None else int(self.memory_reserve_gb * 1e9),
            "load_bytes": None if self.load_memory_gb is None else int(self.load_memory_gb * 1e9),
            "cache_folder": str(self.cache),
            "cache_bytes": int(self.cache_gb * 1e9),
            "trust_remote_code": self.trust_remote_code,
        }

    def shown_limits(self) -> dict[str, float | None]:
        """What a job may take, as `cwtool daemon status` shows it: seconds of a stage, bytes of a load."""
        return {
            "stage_idle_s": self.stage_idle_s,
            "stage_step_s": self.stage_step_s,
            "load_bytes": None if self.load_memory_gb is None else self.load_memory_gb * 1e9,
        }

    @property
    def cache(self) -> Path:
        """Where scores are kept."""
        return self.home / "cache"

    @property
    def empty_folder(self) -> Path:
        """The working folder of the daemon and its workers: with nothing in it, no model or dataset is taken for a path."""
        return self.home / "empty"

    @property
    def runs(self) -> Path:
        """Where run folders are."""
        return self.home / "runs"

    @property
    def workers(self) -> Path:
        """Where it is written down which workers there are."""
        return self.home / "workers"

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

        It is below XDG_RUNTIME_DIR where that is a folder of this user and not too long a path, else below /tmp; where another
        user has taken that name, in the state folder. Clients do not ask here: the daemon writes down which one it has.
        """
        key = hashlib.sha256(os.fsencode(self.home.absolute())).hexdigest()[:10]
        roots = [Path("/tmp") / f"cwtool-{os.getuid()}"]
        if base := _own_runtime_folder():
            roots.insert(0, base / "cwtool")
        folders = [root / key for root in roots if not _is_anothers(root)] + [self.home / "run"]
        sockets = [folder / "daemon.sock" for folder in folders]
        return next((path for path in sockets if len(os.fsencode(path)) <= MOST_SOCKET_BYTES), sockets[0])

    @property
    def runtime_dir(self) -> Path:
        """The folder of that socket."""
        return self.socket.parent


def _environment() -> dict[str, str]:
    """Variables that are set; an empty one counts as unset."""
    found = {name: os.environ.get(variable(name)) for name in Settings.model_fields}
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


def _is_anothers(folder: Path) -> bool:
    """Whether something by that name is there already that is not this user's folder."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()


def variable(name: str) -> str:
    """The variable of the environment that sets a setting."""
    return f"CWTOOL_{name.upper()}"


def unknown_variables() -> list[InvalidInput]:
    """Variables of the environment that look like settings and are none. Other programs may mean them, so they are no error."""
    known = {variable(name): name for name in Settings.model_fields}
    strange = sorted(name for name in os.environ if name.startswith("CWTOOL_") and name not in known)
    return [InvalidInput(f"no setting is called {name}", did_you_mean(name, known)) for name in strange]


def _refused(error: ValidationError, given: Mapping[str, Any]) -> InvalidInput:
    """The first thing that is wrong, in words: which setting, where it was read, what it is and why it cannot be that."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return _unknown(name)
    where = "" if name in given else f" in {variable(name)}" if name in _environment() else f" in {places.CONFIG_FILE}"
    reason = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
    hint = f"{variable(name)} goes before {places.CONFIG_FILE}; where neither has it, the usual value holds"
    return InvalidInput(f"setting {name} is {first['input']!r}{where}: {reason}", hint)


def _unknown(name: str) -> InvalidInput:
    known = Settings.model_fields
    hint = did_you_mean(name, known) or f"the settings are: {', '.join(known)}"
    return InvalidInput(f"there is no setting '{name}', which {places.CONFIG_FILE} has", hint)


def _or_value_error(check: Callable[[], T]) -> T:
    """What `check` gives; its InvalidInput as the ValueError that pydantic wants, so that it can name the setting."""
    try:
        return check()
    except InvalidInput as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
