"""The control groups that limit a process: its own and all above it, on Linux, both versions (cgroups(7))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROCESSES = Path("/proc")
THIS_PROCESS = PROCESSES / "self"


@dataclass(frozen=True, slots=True)
class Group:
    """One control group: a folder of small files."""

    folder: Path
    version: int  # 1 or 2; their files differ

    def words(self, name: str) -> list[str]:
        """The words of a file of the group; none if there is no such file."""
        try:
            return (self.folder / name).read_text().split()
        except OSError:
            return []

    def number(self, name: str) -> int | None:
        """The number in a file; None if it holds none, such as "max"."""
        words = self.words(name)
        return int(words[0]) if words and re.fullmatch(r"-?\d+", words[0]) else None

    def table(self, name: str) -> dict[str, int]:
        """The lines `NAME NUMBER` of a file, as a map."""
        words = self.words(name)
        return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False)}


def groups(controller: str, process: Path = THIS_PROCESS) -> list[Group]:
    """The process's group of a controller ("memory" or "cpu"), then the visible groups above it.

    `process` is its folder in /proc. A group of version 2 without the controller lacks the controller's files.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
        mounts = list(_mounts((process / "mountinfo").read_text(), controller))
    except OSError:  # not Linux, or the process has ended
        return []
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            paths[1] = path
        elif not controllers:
            paths[2] = path
    version = 1 if 1 in paths else 2  # a controller is in one version only
    for mount in mounts:
        if mount.version == version:
            return mount.line_of(paths.get(version, "/"))
    return []


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: the folder `point` shows the group `root` and the groups below it."""

    version: int
    root: str
    point: Path

    def line_of(self, path: str) -> list[Group]:
        """The group `path` and those above it. A path outside the mount, as in some containers, counts as `root`."""
        inside = PurePosixPath(path)
        below = inside.relative_to(self.root) if inside.is_relative_to(self.root) else PurePosixPath()
        folder = self.point / below
        if ".." in below.parts or not folder.is_dir():
            folder = self.point
        folders = [folder, *folder.parents]
        return [Group(each, self.version) for each in folders[: folders.index(self.point) + 1]]


def _mounts(mountinfo: str, controller: str) -> Iterator[_Mount]:
    """The mounts of groups: fields 4 and 5 of a line, and after a dash the type and its options (proc(5))."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        _, _, _, root, point, *_ = before.split(" ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            yield _Mount(2 if kind == "cgroup2" else 1, _unescaped(root), Path(_unescaped(point)))


def _unescaped(path: str) -> str:
    """The path with its octal escapes of spaces and the like decoded."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
