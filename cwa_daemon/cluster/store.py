"""Run folders in a store: a folder that the nodes share, or what fsspec opens (s3://bucket/runs).

A folder is there whole or not at all. In a shared folder it is renamed; elsewhere SHA256SUMS, without which it counts as
nothing, is written last.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import CwaError, InvalidInput, NotFound, OutputError
from cwa_engine.base.files import scratch_path, sync_folder, user_path, write_synced
from cwa_engine.records.checksums import SUMS, check_run, is_of_a_run, written_hashes

_SHARED = "the store is one folder that this machine and all nodes share: mount it under the same path, writable"


def store_named(given: str) -> str:
    """A store as users write it: an absolute path, or an address. Raises InvalidInput."""
    if not given:
        return ""
    if "://" not in given:
        return str(user_path(given, "the store"))
    if given.startswith("file://"):
        return str(user_path(given.removeprefix("file://"), "the store"))
    _opened(given)  # raises where what opens it is missing
    return given.rstrip("/")


def make_store(store: str) -> None:
    """Make the folder of a store, before anything is computed. Raises OutputError."""
    if store and (folder := folder_of(store)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the store {store} cannot be made: {error.strerror}", hint=_SHARED) from error


def check_store(store: str, host: str) -> None:
    """Raises OutputError where a node lacks the folder of a store: one that it made itself would be a folder of its own."""
    if store and (folder := folder_of(store)):
        if not folder.is_dir():
            raise OutputError(f"{host} has no folder {store}, where runs are to be kept", hint=_SHARED)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{host} may not write to {store}, where runs are to be kept", hint=_SHARED)


def holds(place: str, fingerprint: str) -> bool:
    """Whether a run that was brought to a store is there as this machine sees it: its list of hashes, and what that names."""
    try:
        sums = _read(place, SUMS)
        if hashlib.sha256(sums).hexdigest() != fingerprint:
            return False
        hashes = written_hashes(place, sums, b"", fingerprint).hashes
    except (OSError, CwaError):
        return False
    shared = folder_of(place)
    return shared is None or all((shared / name).is_file() for name in hashes)


def put_folder(folder: Path, store: str) -> str:
    """Copy a run folder into a store, and give where it is. Raises OSError, OutputError, and InvalidInput."""
    place = f"{store}/{folder.name}"
    if shared := folder_of(place):
        _copy_whole(folder, shared)
        return place
    files, path = _opened(place)
    names = sorted((file.name for file in folder.iterdir()), key=lambda name: name == SUMS)  # that one last
    try:
        files.makedirs(path, exist_ok=True)
        for name in names:
            files.pipe_file(f"{path}/{name}", (folder / name).read_bytes())
    except Exception as error:  # each kind of store has errors of its own
        raise OutputError(f"{place} cannot be written: {error}", hint="see that every node may write there") from error
    return place


def folder_of(place: str) -> Path | None:
    """The path of a store that is a shared folder, or of a run in it; None for an address, whose runs must be fetched."""
    return None if "://" in place else Path(place)


def fetch_files(place: str) -> dict[str, bytes]:
    """All files of a run in a store, file name -> content. Raises NotFound."""
    files, path = _opened(place)
    try:
        names = [str(found).rpartition("/")[2] for found in files.ls(path, detail=False)]
        return {name: files.cat_file(f"{path}/{name}") for name in names if is_of_a_run(name)}
    except Exception as error:
        raise NotFound(f"the run of {place} cannot be fetched: {error}", hint="see that you may read there") from error


def _read(place: str, name: str) -> bytes:
    """A file of a run in a store. Raises OSError."""
    if shared := folder_of(place):
        return (shared / name).read_bytes()
    files, path = _opened(place)
    try:
        content: bytes = files.cat_file(f"{path}/{name}")
        return content
    except Exception as error:  # each kind of store has errors of its own
        raise OSError(str(error)) from error


def _copy_whole(folder: Path, target: Path) -> None:
    scratch = scratch_path(target)
    try:
        scratch.mkdir()
        for file in folder.iterdir():
            write_synced(scratch / file.name, file.read_bytes())
        if altered := check_run(scratch).altered:
            raise OutputError(f"{scratch} is not what was written: {altered}", hint="look at that disk")
        if target.is_dir() and not check_run(target).altered:  # an actor that was believed dead has brought it already
            return
        scratch.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _opened(address: str) -> tuple[Any, str]:
    """(file system, path in it). Raises InvalidInput where what opens it is not installed."""
    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InvalidInput(
            f"the store {address} cannot be opened: {error}", hint="install what it names, here and on every node"
        ) from error
    return files, path
