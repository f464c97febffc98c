"""Memory that this process can still get: the least of what the machine, control groups and `ulimit` leave."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cwa_engine.machine.cgroups import THIS_PROCESS, Group, groups

MACHINE, GROUP, SHARE = "this machine", "the control group", "its share among the CPU lanes"
PLENTY_BYTES = 4e9


@dataclass(frozen=True, slots=True)
class Memory:
    """One limit of memory and what is free below it. Memory that the system reclaims on demand counts as free."""

    limit: str  # what sets it, for messages
    total_bytes: int
    free_bytes: int

    @property
    def used_bytes(self) -> int:
        return self.total_bytes - self.free_bytes

    @property
    def is_shared(self) -> bool:
        """Whether other processes share the limit. The limits of `ulimit` are for each process."""
        return self.limit in (MACHINE, GROUP)


@dataclass
class _Share:
    """Of this process, among several that hold models of their own at the same time; None for all that there is."""

    size_bytes: int | None = None


_share = _Share()


def take_share(size_bytes: int | None) -> None:
    """From now on this process counts as granted so much memory at most; None for all that there is.

    Without that, two processes that look at the same moment would both take what is free once.
    """
    _share.size_bytes = size_bytes


def available_memory(process: Path = THIS_PROCESS) -> Memory:
    """The limit that leaves the process the least memory. `process` is its folder in /proc."""
    machine = psutil.virtual_memory()
    limits = [Memory(MACHINE, machine.total, machine.available), *_of_groups(process), *_of_shell(process)]
    if _share.size_bytes is not None and process == THIS_PROCESS:
        used = psutil.Process().memory_info()
        own = used.rss - getattr(used, "shared", 0)  # pages of files are shared, and reclaimed on demand
        limits.append(Memory(SHARE, _share.size_bytes, max(0, _share.size_bytes - own)))
    return min(limits, key=lambda memory: memory.free_bytes)


def allocator_settings(environment: Mapping[str, str], process: Path = THIS_PROCESS) -> dict[str, str]:
    """Variables of glibc for a process with little memory, without those that `environment` sets itself.

    With them freed tensors go back to the system at once: the peak of scoring SmolLM2-135M is 120 MB lower, for 5 to 10 %
    more time. Under `ulimit -v`, which also counts memory kept for reuse, 1.7 GB suffice where 1.9 GB did not.
    """
    memory = available_memory(process)
    if memory.is_shared and memory.total_bytes >= PLENTY_BYTES:
        return {}
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    return {name: value for name, value in settings.items() if name not in environment}


def _of_groups(process: Path) -> Iterator[Memory]:
    for group in groups("memory", process):
        limit = _limit(group)
        used = group.number("memory.usage_in_bytes" if group.version == 1 else "memory.current")
        if limit is not None and used is not None:
            used = max(0, used - _reclaimable(group))
            yield Memory(GROUP, limit, max(0, limit - used))


def _limit(group: Group) -> int | None:
    """The group's limit in bytes: where processes are killed, or where they are throttled if that is lower."""
    names = ["memory.limit_in_bytes"] if group.version == 1 else ["memory.max", "memory.high"]
    return min((number for name in names if (number := group.number(name)) is not None), default=None)


def _reclaimable(group: Group) -> int:
    """Bytes of file pages and kernel caches, which the kernel counts as available memory of a machine too."""
    table = group.table("memory.stat")
    total = "total_" if group.version == 1 else ""  # these entries include the groups below
    return sum(table.get(name, 0) for name in (f"{total}active_file", f"{total}inactive_file", "slab_reclaimable"))


def _of_shell(process: Path) -> Iterator[Memory]:
    """What `ulimit -v` and `ulimit -d` leave. They count address space, used or not."""
    try:
        limits, status = (process / "limits").read_text(), (process / "status").read_text()
    except OSError:  # another system, or the process is gone
        return
    for title, command, field in (("address space", "ulimit -v", "VmSize"), ("data size", "ulimit -d", "VmData")):
        limit = re.search(rf"^Max {title} +(\d+)", limits, re.MULTILINE)
        used = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        if limit and used:
            yield Memory(command, int(limit[1]), max(0, int(limit[1]) - 1024 * int(used[1])))
