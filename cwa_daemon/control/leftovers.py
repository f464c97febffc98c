"""What processes that were killed have left behind: one function knows all the places.

Half a file has a hidden name with the number of the process that writes it (`files.scratch_path`), so that nothing is taken
from one that lives: a worker may be saving a run while another control process starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cwa_daemon.base.settings import Settings
from cwa_engine.base.files import FETCHED, is_abandoned, process_lives
from cwa_engine.records.export import leftovers as half_runs

log = logging.getLogger(__name__)

_CONNECT_S = 0.2


def found(settings: Settings) -> list[Path]:
    """Half run folders, half files of the state folder and its cache, and folders of killed clients and daemons."""
    paths: list[Path] = []
    for look in (_half_runs, _half_files, _fetched, _runtime_folders):
        with contextlib.suppress(OSError):  # a folder that cannot be read or is gone by now: doctor names it
            paths += look(settings)
    return paths


def remove(settings: Settings) -> list[Path]:
    """Remove them, as far as that is possible; gives what is gone."""
    gone = []
    for path in found(settings):
        try:
            shutil.rmtree(path) if _is_folder(path) else path.unlink()
        except OSError as error:
            log.warning("%s was left behind and cannot be removed: %s", path, error)
        else:
            gone.append(path)
    return gone


def _half_runs(settings: Settings) -> Iterator[Path]:
    yield from half_runs(settings.runs)


def _half_files(settings: Settings) -> Iterator[Path]:
    """Of `write_whole` and `write_folder`: addresses, keys, scores, studies.

    Texts that are half here go on when their client comes again (texts.py).
    """
    for folder in (settings.home, settings.cache, settings.home / "studies"):
        yield from (path for path in folder.glob(".*") if is_abandoned(path))


def _fetched(settings: Settings) -> Iterator[Path]:
    for path in Path(tempfile.gettempdir()).glob(f"{FETCHED}*"):
        owner = re.match(rf"{FETCHED}(\d+)-", path.name)
        if owner and _is_own_folder(path) and not process_lives(int(owner[1])):
            yield path


def _runtime_folders(settings: Settings) -> Iterator[Path]:
    """Folders of other daemons' sockets, at which nobody listens any more."""
    for root in {Path("/tmp") / f"cwtool-{os.getuid()}", settings.runtime_dir.parent} - {settings.home}:
        for folder in root.iterdir() if root.is_dir() else ():
            if folder != settings.runtime_dir and _is_own_folder(folder) and _is_silent(folder):
                yield folder


def _is_silent(folder: Path) -> bool:
    """Whether a folder holds sockets and nothing else, and each refuses a connection."""
    entries = list(folder.iterdir())
    return bool(entries) and all(stat.S_ISSOCK(entry.lstat().st_mode) and _refuses(entry) for entry in entries)


def _refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # a daemon that is busy, or stopped
            return False
    return False


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _is_own_folder(path: Path) -> bool:
    return _is_folder(path) and path.lstat().st_uid == os.getuid()
