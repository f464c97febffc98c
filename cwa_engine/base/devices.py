"""Names of devices, as options, lanes and files write them.

auto            where there is most room
cpu, cpu:1      the processors; with a number one CPU lane of the daemon
mps             Apple's
cuda, cuda:1    one NVIDIA device; without a number the first
cuda:0+cuda:1   one model over several NVIDIA devices; its embedding lies on the one named first
"""

from __future__ import annotations

import re

from cwa_engine.base.errors import InvalidInput

MOST_NUMBER = 127  # torch keeps a device's number in eight bits
MOST_AT_ONCE = 16  # NVIDIA devices for one model: as many as the largest machines have

_HINT = "use auto, cpu, cpu:N, cuda, cuda:N, mps, or cuda:0+cuda:1 for one model over several devices"


def check_device(name: str) -> str:
    """The name itself. Raises InvalidInput if it names no device."""
    if "+" in name:
        return _check_several(name)
    if not re.fullmatch(r"auto|mps|(cpu|cuda)(:(0|[1-9]\d{0,2}))?", name):
        raise InvalidInput(f"unknown device '{name}'", hint=_HINT)
    _, _, number = name.partition(":")
    if number and int(number) > MOST_NUMBER:
        raise InvalidInput(f"unknown device '{name}'", hint=f"devices are numbered from 0 to {MOST_NUMBER}")
    return name


def _check_several(name: str) -> str:
    parts = devices_in(name)
    for part in parts:
        if not part.startswith("cuda:"):
            raise InvalidInput(
                f"unknown device '{name}': a model can lie on several NVIDIA devices only, each with its number",
                hint="cuda:0+cuda:1",
            )
        check_device(part)
    if len(set(parts)) < len(parts):
        raise InvalidInput(f"device '{name}' names a device twice", hint="name each once: cuda:0+cuda:1")
    if len(parts) > MOST_AT_ONCE:
        raise InvalidInput(
            f"device '{name}' names {len(parts)} devices", hint=f"a model can lie on at most {MOST_AT_ONCE}"
        )
    return name


def devices_in(name: str) -> tuple[str, ...]:
    """The devices of a name: ("cuda:0", "cuda:1") of "cuda:0+cuda:1"; of any other name itself alone."""
    return tuple(name.split("+"))


def memory_of(name: str) -> tuple[str, ...]:
    """The devices whose memory a name takes: ("cpu",) of any CPU lane."""
    return tuple("cpu" if device.startswith("cpu:") else device for device in devices_in(name))


def is_device(name: str) -> bool:
    """Whether a lane of the daemon is one of devices; others make plans or download."""
    return name.startswith(("cpu", "cuda", "mps"))


def name_of(devices: tuple[str, ...]) -> str:
    """The name of these devices together, as `devices_in` reads it."""
    return "+".join(devices)


def is_cpu(name: str) -> bool:
    """Whether a device is the processors, or one lane of them."""
    return name.partition(":")[0] == "cpu"
