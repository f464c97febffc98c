"""Whether the files of a run are still what the run wrote. torch-free.

SHA256SUMS in a run folder has the hash of every other file there, as `sha256sum --check SHA256SUMS` reads it. Its own hash
is the run's fingerprint: it stands for all files of the run, and the job database keeps it. Runs of before have no
SHA256SUMS: of their files the tables alone have hashes, in the manifest.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.errors import Altered, NotFound

SUMS = "SHA256SUMS"
MANIFEST = "manifest.json"
CHANGED, MISSING, ADDED = "altered", "missing", "not written by the run"
UNREADABLE, OTHER_FINGERPRINT = "no list of hashes", "not as it was when the run ended"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\x00]+)")
ALWAYS = (MANIFEST, "summary.json", "log.txt", SUMS)  # files that every run has
_RUN_FILES = (
    *ALWAYS, "topk_*.csv", "scores.csv", "perturbation.csv", "evaluation.csv", "interactions.csv", "stability.csv",
    "fidelity.csv", "ablation.csv", "critical_set.csv", "controls.csv", "spikes.csv", "spike_removal.csv",
    "tasks.csv",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """The files of a run folder beside what the run wrote."""

    hashes: dict[str, str]  # file name -> sha256, as they are now
    altered: dict[str, str]  # file name -> what is wrong with it; empty where every file is as it was written
    unchecked: tuple[str, ...]  # files of which nothing says what the run wrote
    sound: tuple[str, ...]  # files that are as the run wrote them
    fingerprint: str | None  # sha256 of SHA256SUMS, as it is now; None for a run that has none
    known: bool  # whether the fingerprint was compared with one from elsewhere


def is_of_a_run(name: str) -> bool:
    """Whether a file has a name that runs give their files."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _RUN_FILES)


def sums_text(hashes: Mapping[str, str]) -> bytes:
    """The content of SHA256SUMS. `hashes`: file name -> sha256."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode()


def read_checked(folder: Path, name: str, fingerprint: str | None = None) -> bytes:
    """The content of a file of a run, which is what the run wrote as far as that can be known.

    `fingerprint` is the run's, where it is known from elsewhere. Raises NotFound where there is no such file or it cannot
    be read, and Altered.
    """
    content = _read(folder, name)
    try:
        written, _ = _written(folder, fingerprint)
    except _Unfit as unfit:
        raise altered_error(folder.name, {SUMS: str(unfit)}) from unfit
    _compare(folder.name, name, content, written)
    return content


@dataclass(frozen=True)
class WrittenHashes:
    """What the hashes of a run's files were when it wrote them, for files that come from elsewhere one by one."""

    run_id: str
    hashes: Mapping[str, str]  # file name -> sha256

    def compare(self, name: str, content: bytes) -> None:
        """Raises Altered for a file that is not what the run wrote, as far as that can be known."""
        _compare(self.run_id, name, content, self.hashes)


def written_hashes(run_id: str, sums: bytes | None, manifest: bytes, fingerprint: str | None) -> WrittenHashes:
    """By the content of SHA256SUMS, None where there is none, and of the manifest. Raises Altered."""
    try:
        return WrittenHashes(run_id, _hashes(sums, manifest, fingerprint)[0])
    except _Unfit as unfit:
        raise altered_error(run_id, {SUMS: str(unfit)}) from unfit


def _compare(run: str, name: str, content: bytes, written: Mapping[str, str]) -> None:
    if name in written and written[name] != _sha256(content):
        raise altered_error(run, {name: CHANGED})


def check_run(folder: Path, fingerprint: str | None = None) -> Check:
    """Hash every file of a run and compare. Raises NotFound where the folder cannot be read.

    Files of other names than runs give theirs are nobody's business, so an output folder may hold some.
    """
    try:
        there = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise NotFound(f"{folder} cannot be read: {error.strerror}", hint="`cwtool results` lists runs") from None
    try:
        (written, complete), wrong = _written(folder, fingerprint), {}
    except _Unfit as unfit:
        (written, complete), wrong = ({}, True), {SUMS: str(unfit)}
    hashes = {name: _sha256_of_file(folder, name) for name in there if name in written or is_of_a_run(name)}
    known = fingerprint is not None
    if wrong:
        return Check(hashes, wrong, (), (), hashes.get(SUMS), known)
    sound = tuple(name for name in hashes if hashes[name] == written.get(name))
    unchecked = () if complete else tuple(name for name in hashes if name in ALWAYS)
    altered = {name: MISSING for name in written if name not in hashes}
    altered |= {name: CHANGED if name in written else ADDED for name in hashes.keys() - {*sound, *unchecked, SUMS}}
    return Check(hashes, altered, unchecked, sound, hashes.get(SUMS), known)


def fingerprint_of(folder: Path) -> str | None:
    """The sha256 of a run's SHA256SUMS; None where it has none."""
    try:
        return _sha256((folder / SUMS).read_bytes())
    except OSError:
        return None


def saved_at(folder: Path) -> float | None:
    """When the files of a run were written, in seconds since the epoch; None where it has no SHA256SUMS."""
    try:
        return (folder / SUMS).stat().st_mtime
    except OSError:
        return None


def altered_error(run: str, altered: Mapping[str, str]) -> Altered:
    """The error that names the files of a run that are not what it wrote."""
    named = ", ".join(f"{name} is {what}" for name, what in altered.items())
    return Altered(
        f"run {run} is not as it was written: {named}",
        hint=f"`cwtool verify {run}` says what else is; `cwtool rerun {run}` computes it again",
    )


class _Unfit(Exception):
    """SHA256SUMS says nothing of the other files; why is in the message."""


def _written(folder: Path, fingerprint: str | None) -> tuple[dict[str, str], bool]:
    """(file name -> sha256 when it was written, whether that is of every file). Raises _Unfit."""
    try:
        sums, manifest = (folder / SUMS).read_bytes(), b""
    except FileNotFoundError:
        sums, manifest = None, _read_if_there(folder / MANIFEST)
    except OSError as error:
        raise _Unfit(f"not readable: {error.strerror}") from error
    return _hashes(sums, manifest, fingerprint)


def _hashes(sums: bytes | None, manifest: bytes, fingerprint: str | None) -> tuple[dict[str, str], bool]:
    """The same, by the content of SHA256SUMS, or without one by that of the manifest."""
    if sums is None:
        tables, promised = _tables(manifest)
        if promised or fingerprint:
            raise _Unfit(MISSING)
        return tables, False
    if fingerprint and _sha256(sums) != fingerprint:
        raise _Unfit(OTHER_FINGERPRINT)
    lines = [_LINE.fullmatch(line) for line in sums.decode("utf-8", "replace").splitlines()]
    found = {line[2]: line[1] for line in lines if line}
    if len(found) < len(lines) or MANIFEST not in found:
        raise _Unfit(UNREADABLE)
    return found, True


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _tables(content: bytes) -> tuple[dict[str, str], bool]:
    """(hashes of tables by a manifest, whether it says that there is a SHA256SUMS); of a broken one nothing."""
    try:
        manifest = json.loads(content)
        return {str(name): str(digest) for name, digest in manifest["tables"].items()}, manifest.get("sums") == SUMS
    except (ValueError, KeyError, TypeError, AttributeError):  # reading the manifest itself says what is wrong
        return {}, False


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"run {folder.name} has no {name}", hint="`cwtool results` lists finished runs") from None
    except OSError as error:
        raise NotFound(
            f"{folder / name} cannot be read: {error.strerror}", hint="run it again: `cwtool jobs retry`"
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of_file(folder: Path, name: str) -> str:
    try:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NotFound(f"{folder / name} cannot be read: {error.strerror}", hint="check its permissions") from error
