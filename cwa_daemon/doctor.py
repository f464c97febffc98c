"""Whether everything is as it should be on this machine, what to do where it is not, and a bundle to send to others."""

from __future__ import annotations

import dataclasses
import getpass
import importlib.metadata
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwa_daemon import telemetry
from cwa_daemon.lifecycle import find, running_pid
from cwa_daemon.reindex import damage
from cwa_daemon.settings import CONFIG_FILE, MOST_SOCKET_BYTES, Settings, unknown_variables
from cwa_engine import __version__
from cwa_engine.errors import CwaError, InvalidInput, NoDaemon, OutputError
from cwa_engine.machine.memory import available_memory
from cwa_engine.machine.processors import granted_processors, thread_settings
from cwa_engine.models.sources import HubAccess, cached_models
from cwa_engine.reporting.checksums import altered_error, check_run
from cwa_engine.reporting.export import leftovers

LITTLE_DISK_BYTES = 2e9
MOST_NAMED = 3  # altered runs
OK, WARNING, PROBLEM = "ok", "warning", "problem"
_PACKAGES = ("torch", "transformers", "safetensors", "pyzmq", "msgpack", "pydantic", "textual", "typer")
# torch is asked in a process of its own: this one answers in a moment, and a broken CUDA cannot end it.
_ASK_TORCH = (
    "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available(), torch.cuda.device_count())"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `state` is ok, warning or problem; `advice` is what to do."""

    name: str
    state: str
    found: str
    advice: str = ""


def examine(settings: Settings, wrong_settings: Sequence[InvalidInput] = ()) -> list[Check]:
    """Every check, in reading order; of settings that cannot be it is told what is wrong with them."""
    checks = [Check("settings", PROBLEM, error.message, error.hint) for error in wrong_settings]
    checks += [Check("settings", WARNING, error.message, error.hint) for error in unknown_variables()]
    checks = checks or [Check("settings", OK, f"from {CONFIG_FILE} and the environment")]
    return checks + [check for look in _CHECKS for check in look(settings)]


def check_target(bundle: Path) -> None:
    """Refuse what can be no new file, before the checks, which take their time. Raises OutputError."""
    if os.path.lexists(bundle):
        raise OutputError(f"{bundle} is there already", hint="give --bundle a new file")
    if not bundle.parent.is_dir():
        raise OutputError(f"{bundle} cannot be written: there is no folder {bundle.parent}", hint="make it")


def write_bundle(settings: Settings, checks: list[Check], target: Path) -> None:
    """A zip with the checks, the logs and the settings; what is secret or personal is blacked out. Raises OutputError."""
    report = {"cwtool": __version__, "checks": [dataclasses.asdict(check) for check in checks]}
    try:
        with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("report.json", redact(json.dumps(report, indent=2)))
            for path in [*sorted(settings.logs.glob("*.log*")), CONFIG_FILE]:
                if path.is_file():
                    bundle.writestr(path.name, redact(path.read_text("utf-8", errors="replace")))
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}", hint="give --bundle another file") from error


def redact(text: str) -> str:
    """The text without tokens, without values of secret variables, and without the user's name and home."""
    for name, value in os.environ.items():
        if re.search(r"TOKEN|KEY|SECRET|PASSWORD", name) and len(value) >= 6:
            text = text.replace(value, "[redacted]")
    text = re.sub(r"\b(hf|sk|ghp)_[A-Za-z0-9]{4,}", "[redacted]", text)
    text = re.sub(r"(?i)(authorization\W{1,4}).*", r"\1[redacted]", text)
    text = re.sub(r"(?i)(token|password|secret)(\W{1,4})\S+", r"\1\2[redacted]", text)
    text = text.replace(os.path.expanduser("~"), "~")  # noqa: PTH111  # Path.home() fails where there is none
    return re.sub(rf"\b{re.escape(_user_name())}\b", "[user]", text)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number that the system knows no name of
        return str(os.getuid())


def _versions(settings: Settings) -> Iterator[Check]:
    yield Check("python", OK, f"{platform.python_version()} on {platform.platform()}")
    yield Check("packages", OK, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES))


def _torch(settings: Settings) -> Iterator[Check]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        yield Check("torch", PROBLEM, f"it cannot be imported: {error}", "install torch anew")
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
    given = {**os.environ, **thread_settings(os.environ)}
    threads = f", OMP_NUM_THREADS={given['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in given else ""
    yield Check("processors", OK, f"{granted_processors():.3g} of {os.cpu_count()} are granted{threads}")


def _hub(settings: Settings) -> Iterator[Check]:
    try:
        access = HubAccess.from_environment()
    except CwaError as error:
        yield Check("Hugging Face cache", PROBLEM, error.message, error.hint)
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


def _disk(settings: Settings) -> Iterator[Check]:
    free = shutil.disk_usage(_nearest(settings.home)).free
    state = OK if free >= LITTLE_DISK_BYTES else WARNING
    advice = "" if state == OK else "make room, or set CWTOOL_HOME to a folder on another disk"
    yield Check("disk of the state folder", state, f"{free / 1e9:.1f} GB free at {settings.home}", advice)


def _nearest(folder: Path) -> Path:
    """The folder, or where it is not made yet the one it will be made in."""
    return next(known for known in (folder, *folder.parents) if known.exists())


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
    lingering = Path("/var/lib/systemd/linger") / _user_name()
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
    except NoDaemon:
        return settings.socket


def _daemon(settings: Settings) -> Iterator[Check]:
    from cwa_daemon.client import Client

    try:
        with Client.connect(settings.model_copy(update={"host": None}), start=False) as client:
            version, where = client.daemon_version, client.where
    except NoDaemon:
        yield Check("daemon", OK, "none runs; the first command that needs one starts it")
    except CwaError as error:
        yield Check("daemon", PROBLEM, error.message, error.hint)
    else:
        if version == __version__:
            yield Check("daemon", OK, f"{where}, version {version}")
        else:
            advice = "`cwtool daemon restart --when-idle`"
            yield Check("daemon", WARNING, f"{where} is version {version}, this is {__version__}", advice)


def _database(settings: Settings) -> Iterator[Check]:
    if not settings.database.exists():
        yield Check("job database", OK, "there is none yet")
    elif found := damage(settings.database):
        yield Check("job database", PROBLEM, f"{settings.database} is damaged: {found}", "`cwtool doctor --repair`")
    else:
        yield Check("job database", OK, f"{settings.database}, {settings.database.stat().st_size / 1e6:.1f} MB")


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
    left = leftovers(settings.runs)
    if left and not running_pid(settings):
        yield Check("leftovers", WARNING, f"{len(left)} half-written run folders", "`cwtool doctor --repair`")


_CHECKS: tuple[Callable[[Settings], Iterator[Check]], ...] = (
    _versions, _memory, _processors, _torch, _hub, _disk, _permissions, _socket, _daemon, _database, _runs, _leftovers,
)  # fmt: skip
