"""The file of a bundle: every byte of it counts, and one that is made to do harm is refused before anything is written."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cwa_engine.base.errors import CwaError
from cwa_engine.bundles import archive
from cwa_engine.bundles.archive import Packed, write_archive


def test_an_archive_too_large_for_a_plain_zip_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    write_archive(tmp_path / "large.zip", [Packed("a", b"more than fifty bytes " * 9), Packed("b", b"x")])
    (tmp_path / "into").mkdir()
    assert b"PK\x06\x06" in (tmp_path / "large.zip").read_bytes()
    assert archive.unpack(tmp_path / "large.zip", tmp_path / "into").wrong == {}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of an archive with two files, for what does not look into them."""
    path = tmp_path_factory.mktemp("small") / "small.zip"
    write_archive(path, [Packed("bundle.json", b"{}\n"), Packed("runs/a/log.txt", b"a line of a log\n" * 20)])
    return path.read_bytes()


def wrong_in(content: bytes, folder: Path) -> str:
    """What `unpack` finds wrong with these bytes; fails for none."""
    bundle, into = folder / "bundle.zip", folder / "into"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    bundle.write_bytes(content)
    try:
        wrong = archive.unpack(bundle, into).wrong
    except CwaError as error:
        return error.message
    assert wrong
    return " ".join(f"{name}: {what}" for name, what in wrong.items())


def test_every_single_byte_of_the_file_counts(small: bytes, tmp_path: Path) -> None:
    for place in range(len(small)):
        changed = bytearray(small)
        changed[place] ^= 1 << (place % 8)
        assert wrong_in(bytes(changed), tmp_path), place


def test_bytes_before_or_behind_are_refused(small: bytes, tmp_path: Path) -> None:
    assert "stands behind it" in wrong_in(small + b"\0", tmp_path)
    assert "no zip file" in wrong_in(b"#!/bin/sh\n" + small, tmp_path)
    assert "no zip file" in wrong_in(b"hello", tmp_path)


def sealed(make: Callable[[zipfile.ZipFile], None], path: Path) -> Path:
    """A zip made by hand, with a right seal: what only one who knows the format can make."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as into:
        make(into)
        into.comment = archive._SEAL + b"0" * 64
    content = path.read_bytes()[: -archive._SEAL_SIZE]
    path.write_bytes(content + archive._SEAL + hashlib.sha256(content).hexdigest().encode())
    return path


def entry(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644, twice: bool = False) -> Any:
    def make(into: zipfile.ZipFile) -> None:
        for _ in range(1 + twice):
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            into.writestr(info, content)

    return make


def also(name: str) -> Any:
    def make(into: zipfile.ZipFile) -> None:
        entry("a")(into)
        entry(name)(into)

    return make


def stored(into: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("a")
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    into.writestr(info, b"x")


HOSTILE: dict[str, tuple[Any, str]] = {
    "a name that leads out": (entry("../../evil"), "leads out"),
    "a name that leads out from within": (entry("runs/../../evil"), "leads out"),
    "an absolute name": (entry("/etc/passwd"), "absolute"),
    "a Windows name": (entry("C:/evil"), "Windows"),
    "a backslash": (entry("runs\\evil"), "Windows"),
    "a link": (entry("link", b"/etc/passwd", stat.S_IFLNK | 0o777), "no plain file"),
    "a device": (entry("device", b"", stat.S_IFCHR | 0o666), "no plain file"),
    "a folder": (entry("runs/"), "folder"),
    "a line feed": (entry("a\nb"), "cannot be a file's"),
    "a name twice": (entry("a", twice=True), "twice"),
    "two names that differ by case": (also("A"), "twice"),
    "a file that is a folder too": (also("a/b"), "a file and a folder"),
    "a bomb": (entry("bomb", b"\0" * 30_000_000), "room|SHA256SUMS|missing"),
    "an entry that is not deflated": (stored, "packed in another way"),
    "no list of hashes": (entry("a"), "SHA256SUMS"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_made_to_do_harm_is_refused_and_writes_nothing(case: str, tmp_path: Path) -> None:
    make, why = HOSTILE[case]
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    content = sealed(make, tmp_path / "made.zip").read_bytes()
    assert re.search(why, wrong_in(content, tmp_path / "outer" / "inner"))
    assert not list(tmp_path.rglob("evil"))


def with_sizes(name: str, size: int) -> bytes:
    """A sealed archive whose only entry claims to have `size` bytes."""
    path = io.BytesIO()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as into:
        entry(name)(into)
        into.comment = archive._SEAL + b"0" * 64
    content = bytearray(path.getvalue())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<L", size)
    body = bytes(content[: -archive._SEAL_SIZE])
    return body + archive._SEAL + hashlib.sha256(body).hexdigest().encode()


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "would grow from" in wrong_in(with_sizes("a", 2**31), tmp_path)
    monkeypatch.setattr(archive, "MOST_BYTES", 10)
    assert "at most 10" in wrong_in(with_sizes("a", 300), tmp_path)
    monkeypatch.setattr(archive, "MOST_FILES", 0)
    assert "at most 0" in wrong_in(with_sizes("a", 300), tmp_path)
    monkeypatch.setattr(archive, "MOST_NAMES", 10)
    assert "longer than 10" in wrong_in(with_sizes("a", 300), tmp_path)


def test_an_encrypted_entry_is_refused(small: bytes, tmp_path: Path) -> None:
    content = bytearray(small[: -archive._SEAL_SIZE])
    content[content.index(b"PK\x01\x02") + 8] |= 1
    whole = bytes(content) + archive._SEAL + hashlib.sha256(content).hexdigest().encode()
    assert "encrypted" in wrong_in(whole, tmp_path)


def test_an_entry_within_another_is_refused(small: bytes, tmp_path: Path) -> None:
    content = bytearray(small[: -archive._SEAL_SIZE])
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = struct.pack("<L", 5)
    whole = bytes(content) + archive._SEAL + hashlib.sha256(content).hexdigest().encode()
    assert "lies in another" in wrong_in(whole, tmp_path)
