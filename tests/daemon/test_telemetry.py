"""What the daemon sees of memory and devices. NVML is stood in for, as there is no NVIDIA device where tests run."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient
from cwa_daemon.control import telemetry
from cwa_daemon.control.jobs import Jobs
from cwa_daemon.control.store import Store
from cwa_daemon.pipe.messages import PlanMemory
from cwa_daemon.protocol import JobOptions
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine
from tests.daemon.test_jobs import QuietLane

GB = 10**9


@dataclass
class Card:
    """One NVIDIA device as NVML would answer for it."""

    uuid: str
    used: int
    others: int | None = 0  # bytes of a process that is not the daemon's; None where NVML may not tell
    lost: bool = False

    def memory(self) -> SimpleNamespace:
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return SimpleNamespace(total=80 * GB, used=self.used)

    def processes(self) -> list[SimpleNamespace]:
        if self.others is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return [SimpleNamespace(pid=1, usedGpuMemory=self.others), SimpleNamespace(pid=os.getpid(), usedGpuMemory=GB)]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[Card]:
    """What the machine has: tests change it."""
    machine = [
        Card("GPU-a", used=50 * GB, others=49 * GB),
        Card("GPU-b", used=9 * GB, others=None),
        Card("GPU-c", 70 * GB),
    ]

    def by_index(index: int) -> Card:
        if index >= len(machine):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return machine[index]

    def by_uuid(uuid: str) -> Card:
        if found := [card for card in machine if card.uuid == uuid]:
            return found[0]
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    answers = {
        "Init": lambda: None,
        "DeviceGetHandleByIndex": by_index,
        "DeviceGetHandleByUUID": by_uuid,
        "DeviceGetMemoryInfo": Card.memory,
        "DeviceGetComputeRunningProcesses": Card.processes,
        "DeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=37),
        "DeviceGetTemperature": lambda card, sensor: 61,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(f"pynvml.nvml{name}", answer)
    monkeypatch.setattr(telemetry, "_has_nvml", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return machine


@pytest.mark.parametrize(
    ("visible", "used"),
    [
        (None, [50, 9, 70]),
        ("2,0", [70, 50]),
        ("GPU-b", [9]),
        ("", []),
        ("-1", []),
        ("1,7,0", [9]),  # as with CUDA, the first that is not there hides those after it
    ],
)
def test_devices_are_seen_in_the_order_that_cuda_numbers_them(
    cards: list[Card], monkeypatch: pytest.MonkeyPatch, visible: str | None, used: list[int]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cpu, *devices = telemetry.sample([]).devices
    assert cpu.device == "cpu"
    assert [device.device for device in devices] == [f"cuda:{place}" for place in range(len(used))]
    assert [device.used_bytes for device in devices] == [size * GB for size in used]


def test_what_others_use_of_a_device_is_told_apart_and_unknown_where_nvml_may_not_tell(cards: list[Card]) -> None:
    devices = telemetry.sample([os.getpid()]).devices[1:]
    assert [device.others_bytes for device in devices] == [49 * GB, None, 0]
    assert {(device.utilisation, device.temperature_c) for device in devices} == {(0.37, 61.0)}


def test_a_run_without_a_device_may_go_to_each_nvidia_device_and_is_begun_where_most_memory_is_free(
    cards: list[Card], tmp_path: Path
) -> None:
    woken: list[str] = []

    class Lane(QuietLane):
        def wake(self) -> None:
            woken.append(self.device)

        def plan_memory(self) -> PlanMemory:
            return PlanMemory(free_bytes=telemetry.free_bytes(self.device))

    store = Store(tmp_path / "jobs.sqlite")
    jobs = Jobs(store, Settings(home=tmp_path), lambda run_id, event: None, make_lane=Lane)  # type: ignore[arg-type]
    spec = RunSpec(model="gpt2").model_dump(mode="json")
    jobs.submit("run", spec, "auto", "key", "", {}, JobOptions())
    assert woken == ["cuda:1", "cuda:0", "cuda:2"]  # 71, 30 and 10 GB are free
    (job,) = store.jobs()
    assert job.device == "auto"
    woken.clear()
    del cards[:]  # since when there is only the CPU
    jobs.tick()
    assert woken == []  # the driver may not have answered once
    for _ in range(5):
        jobs.tick()
    assert woken == ["cpu"]
    placed = jobs.dispatcher.next_due(Lane("cpu"))  # type: ignore[arg-type]
    assert placed and (placed.run_id, placed.device) == (job.run_id, "cpu")


def test_a_device_that_is_lost_while_the_daemon_runs_does_not_stop_it(cards: list[Card]) -> None:
    cards[1].lost = True
    assert [device.device for device in telemetry.sample([]).devices] == ["cpu", "cuda:0"]


def test_memory_of_files_is_not_taken_for_the_daemons_own_and_so_hides_what_others_use(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(200_000_000))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert pages.find(b"x") == -1  # reads all of it
        resident = psutil.Process().memory_info()
        seen = telemetry.sample([os.getpid()])
        assert seen.processes_bytes > 200_000_000
        cpu = seen.devices[0]
        assert cpu.others_bytes is not None
        private = cpu.used_bytes - cpu.others_bytes
    assert private == pytest.approx(resident.rss - resident.shared, abs=20_000_000)


async def test_telemetry_is_kept_as_a_short_history(own_cwtool: CommandLine) -> None:
    client = await AsyncClient.connect(own_cwtool.settings)
    while len(samples := await client.telemetry()) < 2:  # one is taken each second
        pass
    later = await client.telemetry(after=samples[0].time)
    assert later[0] == samples[1]
    assert len(await client.telemetry(after=samples[0].time + 3600)) >= 2  # as after a clock was put back
    assert (await client.status()).devices[0].total_bytes == samples[0].devices[0].total_bytes
    await client.close()
    assert samples[0].time < samples[1].time
    assert samples[0].devices[0].device == "cpu"
    assert samples[0].processes_bytes > 10_000_000
