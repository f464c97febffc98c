"""What this process is granted, read from stand-ins for /proc and /sys/fs/cgroup in both versions of control groups."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from cwa_engine.base.errors import OutOfMemory
from cwa_engine.hub.sources import HubAccess, ModelSource, SourceKind
from cwa_engine.machine.memory import Memory, allocator_settings, available_memory
from cwa_engine.machine.processors import granted_processors, thread_settings
from cwa_engine.models.failures import named_failures

MB = 2**20
NO_LIMIT = 9223372036854771712  # as version 1 says it


@dataclass
class Machine:
    """A process in the group /pod/box, as the kernel shows it."""

    proc: Path
    groups: Path

    def put(self, group: str, **files: object) -> None:
        """Files of a group; a dot of their names is written as two underscores."""
        folder = self.groups / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")

    def limit(self, title: str, soft: int, used: int, field: str) -> None:
        (self.proc / "limits").write_text(f"Limit  Soft  Hard  Units\nMax {title:<22} {soft}   unlimited   bytes\n")
        (self.proc / "status").write_text(f"Name:\tpython\n{field}:\t{used // 1024:>9} kB\n")


def machine(folder: Path, version: int, root: str = "/") -> Machine:
    proc, mounted = folder / "proc", folder / "groups"
    made = Machine(proc, mounted)
    proc.mkdir()
    mounted.mkdir()
    if version == 2:
        (proc / "cgroup").write_text("0::/pod/box\n")
        mount = f"30 23 0:27 {root} {mounted} rw - cgroup2 cgroup rw"
    else:
        (proc / "cgroup").write_text("5:memory:/pod/box\n3:cpu,cpuacct:/pod/box\n0::/elsewhere\n")
        mount = f"30 23 0:27 {root} {mounted} rw shared:9 - cgroup cgroup rw,memory,cpu,cpuacct"
    (proc / "mountinfo").write_text(f"29 23 0:26 / / rw - ext4 /dev/vda rw\n{mount}\n")
    return made


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def memory_files(version: int, limit: int | str, used: int, files: int = 0) -> dict[str, object]:
    """A group that uses so many bytes, `files` of them for pages of files, a third not used lately."""
    if version == 2:
        stat = f"anon 1\ninactive_file {files // 3}\nactive_file {files - files // 3}\nshmem 7"
        return {"memory__max": limit, "memory__high": "max", "memory__current": used, "memory__stat": stat}
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {files // 3}\ntotal_active_file {files - files // 3}"
    limit = NO_LIMIT if limit == "max" else limit
    return {"memory__limit_in_bytes": limit, "memory__usage_in_bytes": used, "memory__stat": stat}


def test_free_memory_is_what_the_group_leaves_and_pages_of_files_count_as_free(tmp_path: Path, version: int) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **memory_files(version, 300 * MB, 120 * MB, files=60 * MB))
    assert available_memory(box.proc) == Memory("the control group", 300 * MB, 240 * MB)


def test_a_group_above_that_leaves_less_decides(tmp_path: Path, version: int) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **memory_files(version, 300 * MB, 100 * MB))
    box.put("pod", **memory_files(version, 400 * MB, 350 * MB))
    assert available_memory(box.proc) == Memory("the control group", 400 * MB, 50 * MB)


def test_a_group_without_a_limit_leaves_the_memory_of_the_machine(tmp_path: Path, version: int) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **memory_files(version, "max", 100 * MB))
    found = available_memory(box.proc)
    assert (found.limit, found.total_bytes) == ("this machine", psutil.virtual_memory().total)


def test_a_group_that_is_overdrawn_leaves_nothing(tmp_path: Path, version: int) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **memory_files(version, 100 * MB, 101 * MB))
    assert available_memory(box.proc).free_bytes == 0


@pytest.mark.parametrize("root", ["/pod/box", "/somewhere/else"])
def test_a_container_sees_its_group_where_groups_are_mounted(tmp_path: Path, version: int, root: str) -> None:
    box = machine(tmp_path, version, root)
    box.put(".", **memory_files(version, 200 * MB, 50 * MB))
    assert available_memory(box.proc).free_bytes == 150 * MB


def test_from_the_limit_on_at_which_processes_are_slowed_down_nothing_is_free(tmp_path: Path) -> None:
    box = machine(tmp_path, 2)
    box.put("pod/box", **{**memory_files(2, 300 * MB, 100 * MB), "memory__high": 150 * MB})
    assert available_memory(box.proc).free_bytes == 50 * MB


@pytest.mark.parametrize(
    ("title", "field", "command"),
    [("address space", "VmSize", "ulimit -v"), ("data size", "VmData", "ulimit -d")],
)
def test_a_limit_of_the_shell_leaves_what_the_process_has_not_taken(
    tmp_path: Path, title: str, field: str, command: str
) -> None:
    box = machine(tmp_path, 2)
    box.limit(title, 500 * MB, 180 * MB, field)
    assert available_memory(box.proc) == Memory(command, 500 * MB, 320 * MB)


def test_below_ulimit_this_very_process_has_what_can_still_be_mapped() -> None:
    script = """
import mmap, resource
from cwa_engine.machine.memory import available_memory
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
free = available_memory().free_bytes
mmap.mmap(-1, free - 2**22).close()
try:
    mmap.mmap(-1, free + 2**22)
except OSError:
    print(available_memory().limit)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "ulimit -v"


def test_without_control_groups_and_limits_the_machine_decides(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "no such process").limit == "this machine"
    assert granted_processors(tmp_path / "no such process") == len(os.sched_getaffinity(0))


def test_only_a_process_with_little_memory_pays_for_giving_it_back_at_once(tmp_path: Path, version: int) -> None:
    box = machine(tmp_path, version)
    assert allocator_settings({}, box.proc) == {}
    box.put("pod/box", **memory_files(version, 300 * MB, 1))
    assert set(allocator_settings({}, box.proc)) == {"MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_"}
    assert "MALLOC_ARENA_MAX" not in allocator_settings({"MALLOC_ARENA_MAX": "8"}, box.proc)


def quota(version: int, time: int | None, period: int = 100_000) -> dict[str, object]:
    """A group that grants `time` microseconds of processors in each `period`."""
    if version == 2:
        return {"cpu__max": f"{time or 'max'} {period}"}
    return {"cpu__cfs_quota_us": time or -1, "cpu__cfs_period_us": period}


@pytest.fixture
def four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("own", "above", "granted", "threads"),
    [
        (50_000, None, 0.5, "1"),
        (None, 50_000, 0.5, "1"),
        (150_000, 300_000, 1.5, "2"),
        (400_000, None, 4.0, None),
        (900_000, None, 4.0, None),
        (None, None, 4.0, None),
    ],
)
def test_no_more_threads_than_the_quota_grants(
    tmp_path: Path, version: int, own: int | None, above: int | None, granted: float, threads: str | None
) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **quota(version, own))
    box.put("pod", **quota(version, above))
    assert granted_processors(box.proc) == granted
    assert thread_settings({}, box.proc).get("OMP_NUM_THREADS") == threads


@pytest.mark.usefixtures("four_processors")
@pytest.mark.parametrize(
    ("quota_us", "lanes", "threads"), [(None, 2, "2"), (None, 3, "1"), (None, 9, "1"), (200_000, 2, "1")]
)
def test_cpu_lanes_share_the_processors(
    tmp_path: Path, version: int, quota_us: int | None, lanes: int, threads: str
) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **quota(version, quota_us))
    assert thread_settings({}, box.proc, sharers=lanes)["OMP_NUM_THREADS"] == threads
    assert "OMP_NUM_THREADS" not in thread_settings({"OMP_NUM_THREADS": "3"}, box.proc, sharers=lanes)


def test_a_lane_has_its_share_of_the_memory_less_what_it_holds() -> None:
    """In a process of its own, whose tensor of 200 MB counts."""
    script = (
        "import torch; from cwa_engine.machine.memory import available_memory, take_share\n"
        "take_share(10**9); before = available_memory().free_bytes\n"
        "held = torch.ones(50_000_000); after = available_memory().free_bytes\n"
        "take_share(10**7); none = available_memory().free_bytes\n"
        "take_share(None); print(before, after, none, available_memory().free_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after, none, machine_free = map(int, done.stdout.split())
    assert 0 < before < 10**9 and abs(before - after - 200e6) < 20e6
    assert none == 0 and machine_free > before


@pytest.mark.usefixtures("four_processors")
def test_what_the_user_has_set_for_openmp_stays(tmp_path: Path, version: int) -> None:
    box = machine(tmp_path, version)
    box.put("pod/box", **quota(version, 50_000))
    assert thread_settings({"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "7"}, box.proc) == {}
    assert set(thread_settings({"OMP_WAIT_POLICY": "ACTIVE"}, box.proc)) == {"OMP_NUM_THREADS"}


@pytest.mark.parametrize(
    "exhaust", [lambda: torch.empty(2**60), lambda: bytearray(2**62), lambda: mmap.mmap(-1, 2**60)]
)
def test_a_model_for_which_there_is_no_memory_is_not_called_broken(exhaust: Callable[[], object]) -> None:
    source = ModelSource("large", SourceKind.FOLDER, "/models/large")
    with pytest.raises(OutOfMemory, match="large does not fit into memory"), named_failures(source, None, HubAccess()):
        exhaust()
