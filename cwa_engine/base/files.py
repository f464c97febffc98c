"""User-given paths, atomic writes, and checks that a folder can be written. torch-free."""

from __future__ import annotations

import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput, OutputError, did_you_mean

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

FETCHED = "cwtool-fetch-"  # prefix of the names of fetch folders; the process id follows


def user_path(given: str, what: str) -> Path:
    """The path made absolute: `~` is the home folder, a relative path starts at the working folder.

    Raises InvalidInput for an empty or impossible path; the message begins with `what`.
    """
    if not given.strip():
        raise InvalidInput(f"{what} is empty", hint="give a path, or leave it out")
    if given == "~" or given.startswith("~/"):
        home_folder()  # raises InvalidInput if there is none
    path = os.path.expanduser(given)  # noqa: PTH111  # pathlib takes ./~ for ~
    if path.startswith("~"):
        raise InvalidInput(f"{what} {given}: there is no such user", hint=f"write ./{given} for a file of that name")
    try:
        if b"\0" in path.encode():
            raise InvalidInput(f"{what} {given!r} holds a NUL character", hint="check the path")
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} {given!r} is not UTF-8", hint="rename it; cwtool writes names as UTF-8") from None
    return Path(path).absolute()


def home_folder() -> Path:
    """The user's home folder. Raises InvalidInput if the user has none, as in a container that runs as an unknown uid."""
    try:
        return Path.home()
    except RuntimeError:
        raise InvalidInput(
            f"there is no home folder: HOME is not set, and the system knows no user {os.getuid()}",
            hint="set HOME, or CWTOOL_HOME and HF_HOME, to folders that you may write",
        ) from None


def near_files(path: Path) -> str:
    """A hint for a path that does not exist: `did you mean 'x'?`, or the name of the missing folder."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    try:
        return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]) or "check the path"
    except OSError as error:
        return f"the folder {path.parent} cannot be read: {error.strerror}"


def check_output(folder: Path) -> None:
    """Create an output folder and check that files can be written in it. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".cwtool-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"output folder {folder} cannot be written: {error.strerror}", hint="give --output a folder you may write"
        ) from error


def is_read_once(path: Path) -> bool:
    """Whether what is read of a path is gone then, as of a pipe or a terminal."""
    return path.is_fifo() or path.is_char_device() or path.is_relative_to("/dev") or path.is_relative_to("/proc")


def write_whole(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file under a temporary name, flush it to disk and rename it, so that it is there whole or not at all.

    `mode` is as for `os.open`: the umask is applied to it. Raises OSError; no temporary file is left then.
    """
    scratch = scratch_path(path)
    try:
        write_synced(scratch, content, mode)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_folder(
    folder: Path, files: Iterable[tuple[str, bytes]], check: Callable[[Path], None] = lambda written: None
) -> None:
    """Write (file name, content) under a temporary name, flush it to disk, rename it: it is there whole or not at all.

    What `check` raises of the folder before it is renamed ends it.
    """
    scratch = scratch_path(folder)
    scratch.mkdir(parents=True)
    try:
        for name, content in files:
            write_synced(scratch / name, content)
        check(scratch)
        scratch.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def scratch_path(path: Path) -> Path:
    """A hidden temporary name beside `path`: `.NAME.PID-xxxx`, where PID is the writing process."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")


def is_abandoned(path: Path) -> bool:
    """Whether `path` is a temporary name of `scratch_path` (of this or an earlier version) whose process has ended."""
    match = re.fullmatch(r"\..+\.(?:(\d+)-)?[0-9a-f]{8}", path.name)
    if match is None:
        return False
    return match[1] is None or not process_lives(int(match[1]))


def fetch_folder() -> TemporaryDirectory[str]:
    """A temporary folder for the files of a run from another machine. Its name has the process id, for later cleaning."""
    from tempfile import TemporaryDirectory  # imported here: few processes fetch files

    return TemporaryDirectory(prefix=f"{FETCHED}{os.getpid()}-")


def process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # a process of another user; a number that is no process id
        return True
    return True


def write_synced(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a new file and flush it to disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
