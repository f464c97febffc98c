"""Whether everything is as it should be on this machine, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwa_daemon.admin.bundle import user_name
from cwa_daemon.admin.lifecycle import PROCESSES_HINT
from cwa_daemon.admin.reindex import damage, schema_of
from cwa_daemon.base.address import find, running_pid
from cwa_daemon.base.in_force import not_taken
from cwa_daemon.base.settings import MOST_SOCKET_BYTES, NOWHERE, Settings, unknown_variables
from cwa_daemon.control import leftovers, telemetry
from cwa_daemon.control.database import SCHEMA_VERSION, newer_schema
from cwa_engine import __version__
from cwa_engine.base.errors import CwaError, InvalidInput, NoDaemon
from cwa_engine.base.places import CONFIG_FILE
from cwa_engine.hub.sources import HubAccess, cached_models
from cwa_engine.machine.memory import available_memory
from cwa_engine.machine.processors import granted_processors, thread_settings
from cwa_engine.records.checksums import altered_error, check_run

LITTLE_DISK_BYTES = 2e9
MOST_NAMED = 3  # altered runs
OK, WARNING, PROBLEM = "ok", "warning", "problem"
_PACKAGES = ("torch", "transformers", "safetensors", "pyzmq", "msgpack", "pydantic", "textual", "typer")
# torch is asked in a process of its own: this one answers in a moment, and a broken CUDA cannot end it.
_TORCH_S = 120.0
_ASK_TORCH = (
    "import gc; gc.disable(); "  # looking for garbage among what is being imported takes a seventh of the time
    "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available(), torch.cuda.device_count())"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `state` is ok, warning or problem; `advice` is what to do."""

    name: str
    state: str
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class DaemonAnswer:
    """What a daemon says when it is asked: its version, which one it is in words, what is wrong with it, its settings."""

    version: str
    where: str
    troubles: Sequence[str]
    settings: Mapping[str, str]


AskDaemon = Callable[[Settings], DaemonAnswer]  # raises NoDaemon where none runs, and other errors of a client
_Look = Callable[[Settings], Iterator[Check]]


def examine(settings: Settings, ask_daemon: AskDaemon, wrong_settings: Sequence[InvalidInput] = ()) -> list[Check]:
    """Every check, in reading order; of settings that cannot be it is told what is wrong with them."""

    def daemon(settings: Settings) -> Iterator[Check]:
        return _daemon(settings, ask_daemon)

    checks = [Check("settings", PROBLEM, error.message, error.hint) for error in wrong_settings]
    checks += [Check("settings", WARNING, error.message, error.hint) for error in unknown_variables()]
    checks = checks or [Check("settings", OK, f"from {CONFIG_FILE} and the environment")]
    if settings.home == NOWHERE:
        checks.append(
            Check("state folder", PROBLEM, "there is none, so that nothing of it was looked at", "set CWTOOL_HOME")
        )
        return checks + [check for look in _OF_THE_MACHINE for check in _looked_at(look, settings)]
    looks = (*_OF_THE_MACHINE, *_OF_ITS_PLACES, daemon, *_OF_ITS_FILES)
    return checks + [check for look in looks for check in _looked_at(look, settings)]


def _looked_at(look: _Look, settings: Settings) -> Iterator[Check]:
    """The checks of one kind; where looking itself fails, a check that says so: the others are made all the same."""
    name = look.__name__.strip("_").replace("_", " ")
    try:
        yield from look(settings)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        yield Check(name, PROBLEM, f"it cannot be looked at: {where}{error.strerror}", "mend that, and look again")
    except CwaError as error:
        yield Check(name, PROBLEM, error.message, error.hint)
    except Exception as error:
        yield Check(
            name, PROBLEM, f"looking at it failed: {type(error).__name__}: {error}", "this is a defect of cwtool"
        )


def _versions(settings: Settings) -> Iterator[Check]:
    yield Check("python", OK, f"{platform.python_version()} on {platform.platform()}")
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check("packages", PROBLEM, f"{', '.join(missing)} cannot be found", "install cwtool again")
    yield Check("packages", OK, ", ".join(found))


def _torch(settings: Settings) -> Iterator[Check]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TORCH_S, check=True
        )
    except OSError as error:
        yield Check("torch", PROBLEM, f"no process can be started: {error.strerror}", PROCESSES_HINT)
        return
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        yield Check("torch", PROBLEM, f"it cannot be imported: {last}", "install torch anew")
        return
    except subprocess.TimeoutExpired:
        yield Check("torch", PROBLEM, f"it was not imported within {_TORCH_S:g} s", "look at the disk and the driver")
        return
    version, cuda, available, count = done.stdout.split()
    devices = [device for device in telemetry.sample([]).devices if device.device != "cpu"]
    found = f"torch {version}, CUDA {cuda}, {count} devices"
    if devices and available == "False":
        yield Check("torch", PROBLEM, f"{found}, but the driver shows {len(devices)}", "install a CUDA build of torch")
    else:
        yield Check("torch", OK, found)
    for device in devices:
        yield Check(
            "device", OK, f"{device.device}: {device.used_bytes / 1e9:.1f} of {device.total_bytes / 1e9:.1f} GB used"
        )


def _memory(settings: Settings) -> Iterator[Check]:
    memory = available_memory()
    left = f"{memory.free_bytes / 1e9:.1f} of {memory.total_bytes / 1e9:.1f} GB free"
    yield Check("memory", OK, f"{left}, by the limit of {memory.limit}")


def _processors(settings: Settings) -> Iterator[Check]:
    lanes = settings.cpu_lanes
    given = {**os.environ, **thread_settings(os.environ, sharers=lanes)}
    threads = f", OMP_NUM_THREADS={given['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in given else ""
    each = f" in each of {lanes} CPU lanes" if lanes > 1 else ""
    found = f"{granted_processors():.3g} of {os.cpu_count()} are granted{threads}{each}"
    if lanes > granted_processors():
        hint = "lower CWTOOL_CPU_LANES: lanes beyond the processors wait for one another, and take memory"
        yield Check("processors", WARNING, f"{found}, more than there are processors", hint)
    else:
        yield Check("processors", OK, found)


def _hub(settings: Settings) -> Iterator[Check]:
    try:
        access = HubAccess.from_environment()
    except CwaError as error:
        yield Check("Hugging Face cache", PROBLEM, error.message, error.hint)
        return
    if unreadable := _unreadable(access.cache):
        yield Check("Hugging Face cache", PROBLEM, unreadable, "set HF_HOME to a folder of yours")
        return
    models = cached_models(access)
    size = sum(size for _, size in models) / 1e9
    token = "a token is set" if access.token else "no token is set"
    offline = ", HF_HUB_OFFLINE is set" if access.offline else ""
    found = f"{access.cache}: {len(models)} models, {size:.1f} GB; {token}{offline}"
    if os.access(_nearest(access.cache), os.W_OK):
        yield Check("Hugging Face cache", OK, found)
    else:
        yield Check("Hugging Face cache", WARNING, f"{found}; it cannot be written", "set HF_HOME to a folder of yours")


def _unreadable(folder: Path) -> str:
    """Why a folder, or one of those in it, cannot be read; empty where all can, or where there is none."""
    try:
        for inner in [folder, *folder.iterdir()]:
            if inner.is_dir() and not os.access(inner, os.R_OK | os.X_OK):
                return f"{inner} cannot be read"
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"
    return ""


def _disk(settings: Settings) -> Iterator[Check]:
    free = shutil.disk_usage(_nearest(settings.home)).free
    state = OK if free >= LITTLE_DISK_BYTES else WARNING
    advice = "" if state == OK else "make room, or set CWTOOL_HOME to a folder on another disk"
    yield Check("disk of the state folder", state, f"{free / 1e9:.1f} GB free at {settings.home}", advice)


def _nearest(folder: Path) -> Path:
    """The folder, or where it is not made yet the one it will be made in."""
    return next(known for known in (folder, *folder.parents) if os.path.exists(known))  # noqa: PTH110  # Path.exists raises


def _permissions(settings: Settings) -> Iterator[Check]:
    for folder in (settings.home, _socket_file(settings).parent):
        if not folder.exists():
            continue
        found = folder.lstat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid != os.getuid():
            yield Check(
                "owner", PROBLEM, f"{folder} belongs to uid {found.st_uid}", "set CWTOOL_HOME to a folder of yours"
            )
        elif mode & 0o077:
            yield Check("permissions", WARNING, f"{folder} has mode {mode:o}", f"chmod 700 {folder}")
        else:
            yield Check("permissions", OK, f"{folder} is for you alone")


def _socket(settings: Settings) -> Iterator[Check]:
    path = _socket_file(settings)
    elsewhere = "" if path == settings.socket else f"; started in this shell it would be {settings.socket}"
    yield Check("socket", OK, f"{path}, {len(os.fsencode(path))} of {MOST_SOCKET_BYTES} bytes{elsewhere}")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    lingering = Path("/var/lib/systemd/linger") / user_name()
    if runtime and path.is_relative_to(runtime) and not lingering.exists():
        yield Check(
            "lingering",
            WARNING,
            f"{runtime} goes away at your last logout, and processes may be ended then",
            "`loginctl enable-linger` keeps both; the daemon makes its socket anew in any case",
        )


def _socket_file(settings: Settings) -> Path:
    """Where the daemon's socket is, or would be."""
    try:
        return find(settings).socket
    except CwaError:  # none runs, or what is wrong with its address is told by the check of the daemon
        return settings.socket


def _daemon(settings: Settings, ask: AskDaemon) -> Iterator[Check]:
    try:
        answer = ask(settings)
    except NoDaemon:
        yield Check("daemon", OK, "none runs; the first command that needs one starts it")
    except CwaError as error:
        yield Check("daemon", PROBLEM, error.message, error.hint)
    except RuntimeError as error:  # of threading
        yield Check("daemon", PROBLEM, f"it cannot be asked: {error}", PROCESSES_HINT)
    else:
        for trouble in answer.troubles:
            yield Check("daemon", PROBLEM, trouble, f"its log is {settings.daemon_log}")
        if answer.troubles:
            return
        if answer.version == __version__:
            yield Check("daemon", OK, f"{answer.where}, version {answer.version}")
        else:
            advice = "`cwtool daemon restart --when-idle`"
            yield Check("daemon", WARNING, f"{answer.where} is version {answer.version}, this is {__version__}", advice)
        if unlike := not_taken(settings, answer.settings):
            advice = "`cwtool daemon restart --when-idle` takes what this shell has"
            yield Check("settings of the daemon", WARNING, "; ".join(unlike), advice)


def _database(settings: Settings) -> Iterator[Check]:
    if not settings.database.exists():
        yield Check("job database", OK, "there is none yet")
    elif (schema := schema_of(settings.database)) > SCHEMA_VERSION:
        refusal = newer_schema(settings.database, schema)
        yield Check("job database", PROBLEM, refusal.message, refusal.hint)
    elif found := damage(settings.database):
        yield Check("job database", PROBLEM, f"{settings.database} is damaged: {found}", "`cwtool doctor --repair`")
    else:
        yield Check("job database", OK, f"{settings.database}, {settings.database.stat().st_size / 1e6:.1f} MB")


def _keys(settings: Settings) -> Iterator[Check]:
    """The files of connections to and from other machines, which most users do not have."""
    from cwa_daemon.base import keys

    looks: dict[str, Callable[[Settings], object]] = {
        "keys.json": keys.own_pair, "allowed.json": keys.allowed, "hosts.json": keys.hosts
    }  # fmt: skip
    for name, look in looks.items():
        path = settings.home / name
        if not path.exists():
            continue
        try:
            look(settings)
        except CwaError as error:
            yield Check("keys", PROBLEM, error.message, error.hint)
        else:
            yield Check("keys", OK, f"{path} can be read")


def _runs(settings: Settings) -> Iterator[Check]:
    """Every file of every finished run, hashed."""
    folders = [path for path in sorted(settings.runs.glob("[!.]*")) if path.is_dir()]
    altered = []
    for folder in folders:
        try:
            if wrong := check_run(folder).altered:
                altered.append(altered_error(folder.name, wrong).message)
        except CwaError as error:
            altered.append(error.message)
    if altered:
        more = f", and {len(altered) - MOST_NAMED} more runs" if len(altered) > MOST_NAMED else ""
        found = f"{'; '.join(altered[:MOST_NAMED])}{more}"
        yield Check(
            "run folders", PROBLEM, found, "`cwtool verify RUN` says more, `cwtool rerun RUN` computes it again"
        )
    elif folders:
        yield Check("run folders", OK, f"the files of {len(folders)} runs are as they were written")


def _leftovers(settings: Settings) -> Iterator[Check]:
    if left := leftovers.found(settings):
        some = ", ".join(map(str, left[:3])) + " ..." * (len(left) > 3)
        advice = "`cwtool daemon restart --when-idle`" if running_pid(settings) else "`cwtool doctor --repair`"
        yield Check(
            "leftovers", WARNING, f"{len(left)} of processes that were killed: {some}", f"{advice} removes them"
        )


_OF_THE_MACHINE: tuple[_Look, ...] = (_versions, _memory, _processors, _torch, _hub)
_OF_ITS_PLACES: tuple[_Look, ...] = (_disk, _permissions, _socket, _keys)
_OF_ITS_FILES: tuple[_Look, ...] = (_database, _runs, _leftovers)
