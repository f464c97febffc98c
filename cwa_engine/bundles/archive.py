"""The file of a bundle: a zip that is the same for the same content, sealed by a hash, and read with suspicion. torch-free.

Every entry has the same time and mode, and names are sorted, so the same files give the same bytes (with the same zlib).
The comment at the end is the SHA-256 of all that stands before it: of headers, too, of which zip itself checks little.

A bundle comes from anywhere. Before an entry is read, names, sizes, places and flags of all are checked, and at most as much
is read as they say.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cwa_engine.base.errors import Altered, InvalidInput, NotFound
from cwa_engine.records.checksums import SUMS

MOST_FILES = 100_000
MOST_BYTES = 64 * 2**30  # of all files, unpacked
MOST_NAMES = 64 * 2**20  # bytes of the list of files
MOST_RATIO = 1100  # unpacked over packed; deflate itself reaches 1032
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
_CHUNK = 2**20
_SEAL = b"cwtool bundle, SHA-256 "
_SEAL_SIZE = len(_SEAL) + 64
_END, _END_SIZE = b"PK\x05\x06", 22
_LOCAL_SIZE = 30
_IN_ZIP64, _ZIP64_SIZE = 2**32 - 1, 56 + 20
_UTF8_FLAG = 0x800
_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00\n]+)")


@dataclass(frozen=True, slots=True)
class Packed:
    """A file for a bundle: its content, or where it is."""

    name: str  # with / between folders
    content: bytes | Path


def write_archive(target: Path, files: Iterable[Packed]) -> str:
    """Write a bundle with SHA256SUMS over all these files; give the SHA-256 of the bundle. Raises OSError.

    A file is copied piece by piece, so its size does not matter. `target` must be new.
    """
    sums: dict[str, str] = {}
    with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for packed in sorted(files, key=lambda packed: packed.name):
            sums[packed.name] = _write(archive, packed)
        _write(archive, Packed(SUMS, sums_of(sums)))
        archive.comment = _SEAL + b"0" * 64
    with target.open("r+b") as file:
        seal, size = hashlib.sha256(), target.stat().st_size - _SEAL_SIZE
        for piece in _pieces(file, size):
            seal.update(piece)
        file.seek(size)
        file.write(_SEAL + seal.hexdigest().encode())
    return sha256_of(target)


def sums_of(hashes: dict[str, str]) -> bytes:
    """The content of SHA256SUMS, as `sha256sum --check` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(archive: zipfile.ZipFile, packed: Packed) -> str:
    entry = zipfile.ZipInfo(packed.name, _TIME)
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, _UNIX, _MODE << 16
    digest = hashlib.sha256()
    content = packed.content
    entry.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with archive.open(entry, "w") as into:
        for piece in [content] if isinstance(content, bytes) else _of_file(content):
            digest.update(piece)
            into.write(piece)
    return digest.hexdigest()


def _of_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(_CHUNK, size))):
        size -= len(piece)
        yield piece


@dataclass(frozen=True)
class Unpacked:
    """The files of a bundle in a folder, beside what its SHA256SUMS says."""

    sha256: str  # of the bundle
    hashes: dict[str, str]  # of each file, as it was unpacked
    wrong: dict[str, str]  # file name -> what is wrong with it; empty where all is as it was packed


def unpack(bundle: Path, folder: Path) -> Unpacked:
    """Unpack a bundle into an empty folder, and compare every byte of it with its hashes.

    What is wrong with single files is in the answer. Raises NotFound where there is no such file, InvalidInput for one that is
    no bundle or that is made to do harm, and Altered for one that cannot be unpacked.
    """
    try:
        sealed, digest = _seal_holds(bundle), sha256_of(bundle)
        with zipfile.ZipFile(bundle) as archive:
            entries = _checked(bundle, archive, sealed)
            _check_room(folder, entries)
            hashes, wrong = {}, {}
            for entry in entries:
                try:
                    hashes[entry.filename] = _unpack_one(archive, entry, folder / entry.filename)
                except (
                    zipfile.BadZipFile,
                    zlib.error,
                    EOFError,
                    NotImplementedError,
                    UnicodeError,
                    struct.error,
                ) as error:
                    wrong[entry.filename] = f"not readable: {error}"
    except FileNotFoundError:
        raise NotFound(f"there is no file {bundle}", hint="give the file that `cwtool bundle` wrote") from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeError, ValueError) as error:
        raise Altered(f"{bundle} cannot be read: {error}", hint="it is cut off or altered: fetch it again") from error
    except OSError as error:
        raise NotFound(
            f"{bundle} cannot be unpacked: {error.strerror or error}", hint="check the file and the disk"
        ) from None
    wrong |= _compared(folder, hashes, wrong)
    if not (sealed or wrong):
        wrong[bundle.name] = "altered between its files: the hash at its end is not that of what stands before it"
    return Unpacked(digest, hashes, wrong)


def _seal_holds(bundle: Path) -> bool:
    """Whether the hash at the end is that of all before it. Raises InvalidInput for a file that is no bundle at all."""
    size = bundle.stat().st_size
    with bundle.open("rb") as file:
        begin = file.read(4)
        if begin != b"PK\x03\x04":
            raise InvalidInput(
                f"{bundle} is no bundle: it is no zip file", hint="give the file that `cwtool bundle` wrote"
            )
        if size < _END_SIZE + _SEAL_SIZE + _LOCAL_SIZE:
            raise Altered(f"{bundle} is cut off: it has {size} bytes", hint="fetch it again")
        file.seek(size - _SEAL_SIZE - _END_SIZE)
        end, seal = file.read(_END_SIZE), file.read(_SEAL_SIZE)
        if not end.startswith(_END) or not seal.startswith(_SEAL):
            raise Altered(
                f"{bundle} does not end as a bundle ends: it is cut off, something stands behind it, or another program "
                "made it",
                hint="fetch it again; a bundle that was unpacked and packed by other programs is no bundle any more",
            )
        if _size_of_names(file, size, end) > MOST_NAMES:
            raise _refused(bundle, f"its list of files is longer than {MOST_NAMES:,} bytes")
        file.seek(0)
        digest = hashlib.sha256()
        for piece in _pieces(file, size - _SEAL_SIZE):
            digest.update(piece)
    return seal == _SEAL + digest.hexdigest().encode()


def _size_of_names(file: IO[bytes], size: int, end: bytes) -> int:
    """Bytes of the list of files; of a large archive it stands in a record of its own, before the end."""
    (listed,) = struct.unpack("<L", end[12:16])
    if listed != _IN_ZIP64:
        return int(listed)
    here = file.tell()
    file.seek(max(0, size - _SEAL_SIZE - _END_SIZE - _ZIP64_SIZE))
    record = file.read(_ZIP64_SIZE)
    file.seek(here)
    return int(struct.unpack("<Q", record[40:48])[0])


def _checked(bundle: Path, archive: zipfile.ZipFile, sealed: bool) -> list[zipfile.ZipInfo]:
    """All entries, none of which can do harm. Raises InvalidInput that names one; Altered where the seal is broken anyway."""
    try:
        return _harmless(bundle, archive.infolist())
    except InvalidInput as error:
        if sealed:
            raise
        raise Altered(f"{bundle} is altered: {error.message}", hint="fetch it again") from error


def _harmless(bundle: Path, entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    if len(entries) > MOST_FILES:
        raise _refused(bundle, f"it has {len(entries):,} files, and a bundle at most {MOST_FILES:,}")
    seen: set[str] = set()
    for entry in entries:
        if why := _harm(entry, seen):
            raise _refused(bundle, f"its entry {entry.filename!r} {why}")
        seen.add(entry.filename.lower())
    folders = {name[: place.start()] for name in seen for place in re.finditer("/", name)}
    if both := sorted(folders & seen):
        raise _refused(bundle, f"its entry {both[0]!r} is a file and a folder")
    if (size := sum(entry.file_size for entry in entries)) > MOST_BYTES:
        raise _refused(bundle, f"unpacked it has {size:,} bytes, and a bundle at most {MOST_BYTES:,}")
    behind = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < behind:
            raise _refused(bundle, f"its entry {entry.filename!r} lies in another one")
        behind = entry.header_offset + _LOCAL_SIZE + len(entry.filename.encode()) + entry.compress_size
    return entries


def _harm(entry: zipfile.ZipInfo, seen: set[str]) -> str:
    """What is wrong with an entry in words; empty for nothing."""
    name, mode = entry.filename, entry.external_attr >> 16
    parts = name.split("/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or "\\" in name:
        return "has an absolute or a Windows path"
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of its folder, or is a folder"
    if not name.isprintable() or len(name.encode()) > 1000 or any(len(part.encode()) > 255 for part in parts):
        return "has a name that cannot be a file's"
    if name.lower() in seen:
        return "is there twice"
    if mode and not stat.S_ISREG(mode):
        return "is no plain file"
    if entry.flag_bits & ~_UTF8_FLAG:
        return "is encrypted, or packed in another way than bundles are"
    if entry.compress_type != zipfile.ZIP_DEFLATED:
        return "is packed in another way than bundles are"
    if entry.file_size > MOST_RATIO * max(entry.compress_size, 1):
        return f"would grow from {entry.compress_size:,} to {entry.file_size:,} bytes"
    return ""


def _refused(bundle: Path, why: str) -> InvalidInput:
    return InvalidInput(f"{bundle} is not unpacked: {why}", hint="cwtool makes no such bundles: do not trust it")


def _check_room(folder: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidInput(
            f"the bundle has {needed:,} bytes unpacked, and {folder} has room for {free:,}",
            hint="set TMPDIR to a folder with more room",
        )


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> str:
    """Write an entry; give its SHA-256. zipfile reads no more than the size that was checked, and compares the CRC."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(entry) as source, target.open("xb") as into:
        while piece := source.read(_CHUNK):
            digest.update(piece)
            into.write(piece)
        if into.tell() != entry.file_size:
            raise zipfile.BadZipFile(f"it has {into.tell():,} bytes in place of {entry.file_size:,}")
    return digest.hexdigest()


def _compared(folder: Path, hashes: dict[str, str], unreadable: dict[str, str]) -> dict[str, str]:
    """What differs from SHA256SUMS, by file."""
    if SUMS in unreadable:
        return {}
    if SUMS not in hashes:
        return {SUMS: "missing"}
    lines = [_LINE.fullmatch(line) for line in (folder / SUMS).read_text("utf-8", "replace").splitlines()]
    said = {line[2]: line[1] for line in lines if line}
    if len(said) < len(lines) or sums_of(said) != (folder / SUMS).read_bytes():
        return {SUMS: "no list of hashes"}
    found = {name: digest for name, digest in hashes.items() if name != SUMS}
    wrong = {name: "missing" for name in said if name not in found and name not in unreadable}
    wrong |= {name: "not in SHA256SUMS" for name in found if name not in said}
    return wrong | {name: "altered" for name, digest in found.items() if name in said and said[name] != digest}
