"""Plans, made beside the runs: what such a process must be told of a device that it does not use."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from cwa_daemon.pipe.messages import Limits, PlanMemory, WarmCopy
from cwa_daemon.worker.residency import ModelKey, Residency, Resident
from cwa_daemon.worker.warm_models import reserve_bytes
from cwa_engine.base.devices import devices_in, is_cpu
from cwa_engine.base.errors import CwaError, DoesNotFit, InvalidInput
from cwa_engine.hub.sources import HubAccess, resolve
from cwa_engine.models.loading import torch_device
from cwa_engine.models.memory import free_bytes
from cwa_engine.planning import plan
from cwa_engine.rows import Plan
from cwa_engine.spec import RunSpec


def make_plan(spec: RunSpec, access: HubAccess, device: str, memory: PlanMemory, limits: Limits) -> Plan:
    """The plan of a run on a device that this process does not use."""
    free, each = memory.free_bytes, memory.each
    if free is None and (each := _measured(device)):
        free = sum(each)
    room = _room(spec, device, free, memory.warm, limits)
    kind = "cpu" if is_cpu(device) else device  # to the engine every CPU lane is the CPU
    return dataclasses.replace(plan(spec, access, kind, limits.trust_remote_code, room, each=each), device=device)


def _measured(device: str) -> tuple[int, ...]:
    """Free memory of each device of a name on which no worker runs; nothing where this machine has no such device."""
    try:
        return tuple(map(free_bytes, _devices(device)))
    except InvalidInput:
        return ()


def _room(
    spec: RunSpec, device: str, free: int | None, warm: Sequence[WarmCopy], limits: Limits
) -> Callable[[str, int], int | None]:
    """Of a dtype and the bytes of the weights in it: what is free for these and the work, when others have made room."""

    budget = len(devices_in(device)) * limits.budget_bytes if limits.budget_bytes else math.inf

    def room(dtype: str, weights: int) -> int | None:
        if free is None:
            return None
        reserve = reserve_bytes(_devices(device), limits)
        there = [copy.size_bytes for copy in warm if copy.dtype == dtype and _same(copy.name, spec.model)]
        if there:
            return free + int(there[0])
        residency: Residency[None] = Residency()
        for number, copy in enumerate(warm):
            key = ModelKey(copy.name, None, copy.dtype, "", str(number))
            residency.add(Resident(key, copy.name, None, copy.size_bytes, pinned=copy.pinned))
        before = residency.size_bytes

        def left() -> int:
            return free + before - residency.size_bytes

        try:
            residency.make_room(spec.model, weights, budget, lambda: left() - reserve)
        except DoesNotFit:
            return free + sum(resident.size_bytes for resident in residency if not resident.pinned)
        return left()

    return room


def _devices(name: str) -> list[torch.device]:
    """Raises InvalidInput where this machine lacks one of them."""
    return [torch_device(one) for one in devices_in(name)]


def _same(warm: str, asked: str) -> bool:
    """Whether two names lead to the same model."""
    try:
        return warm == asked or resolve(warm).location == resolve(asked).location
    except CwaError:
        return False
