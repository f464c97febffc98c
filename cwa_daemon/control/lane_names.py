"""Which lanes this daemon has, and which of them may run a job of `--device auto`, `cpu` or `cpu:1`.

auto     any NVIDIA device, where there is none any CPU lane
cpu      any CPU lane
others   that lane alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.base.devices import is_cpu
from cwa_engine.base.errors import InvalidInput

AUTO, CPU = "auto", "cpu"


@dataclass(frozen=True, slots=True)
class LaneNames:
    """The CPU lanes and the NVIDIA devices of a daemon. Other lanes are there once they are named."""

    cpu: tuple[str, ...] = (CPU,)
    nvidia: tuple[str, ...] = ()

    @classmethod
    def of(cls, cpu_lanes: int, nvidia_devices: int) -> LaneNames:
        """The names for so many lanes; a single CPU lane is "cpu"."""
        cpu = tuple(f"cpu:{number}" for number in range(cpu_lanes)) if cpu_lanes > 1 else (CPU,)
        return cls(cpu, tuple(f"cuda:{number}" for number in range(nvidia_devices)))

    def for_device(self, asked: str) -> tuple[str, ...]:
        """The lanes that may run a job of this device. A CPU lane that is not here any more stands for any."""
        if asked == AUTO:
            return self.nvidia or self.cpu
        if asked == CPU or self.is_gone(asked):
            return self.cpu
        return ("cuda:0",) if asked == "cuda" else (asked,)

    def kept_as(self, asked: str) -> str:
        """What a job has as its device while it is queued: its lane where there is one alone, else what was asked for."""
        lanes = self.for_device(asked)
        return lanes[0] if len(lanes) == 1 else CPU if self.is_gone(asked) else asked

    def taken_by(self, lane: str) -> tuple[str, ...]:
        """The devices of queued jobs that a lane may run, as `kept_as` gives them."""
        if self.is_gone(lane):
            return ()
        return tuple(dict.fromkeys([lane, *(each for each in (AUTO, CPU) if lane in self.for_device(each))]))

    def is_gone(self, lane: str) -> bool:
        """Whether a name is that of a CPU lane which this daemon does not have, as after a start with fewer."""
        return is_cpu(lane) and lane not in self.cpu

    def sharers(self, lane: str) -> int:
        """How many lanes share the memory and the processors of this one."""
        return len(self.cpu) if lane in self.cpu else 1

    @property
    def shown_from_the_start(self) -> Sequence[str]:
        """The lanes among which jobs are placed; none where there is nothing to choose."""
        return [name for lanes in (self.nvidia, self.cpu) if len(lanes) > 1 for name in lanes]

    def check(self, asked: str) -> None:
        """Raises InvalidInput for a CPU lane that this daemon does not have."""
        if asked != CPU and self.is_gone(asked) and not (asked == "cpu:0" and self.cpu == (CPU,)):
            has = "one CPU lane, cpu" if len(self.cpu) == 1 else f"the CPU lanes {', '.join(self.cpu)}"
            raise InvalidInput(
                f"this daemon has no device '{asked}': it has {has}",
                hint="use --device cpu, or start the daemon with CWTOOL_CPU_LANES set to how many you want",
            )
