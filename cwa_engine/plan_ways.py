"""The ways of running that fit, of those that were planned, and the command lines of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cwa_engine.base.sizes import memory_size
from cwa_engine.command_line import command_of
from cwa_engine.rows import PlanOption, PlanRow
from cwa_engine.spec import RunSpec

Way = tuple[RunSpec, PlanRow, str]  # how it is asked for, what it needs, why it fits


def ways_that_fit(spec: RunSpec, rows: Sequence[PlanRow], usual: str) -> list[Way]:
    """All that fits, from the most that a run can tell to the least. `usual` is the dtype where none is asked for."""
    at = {(row.dtype, row.gradients): row for row in rows}
    swept = {"gradients": "sweep", "fast_perturbation": True}
    discovery = {"offload": "cpu", "eval_limit": min(10, spec.eval_limit or 10), "perturbations": ()}
    half = {"dtype": "bfloat16"}
    tiers: list[tuple[tuple[str, str], Mapping[str, object], str]] = [
        ((usual, "resident"), {}, "all gradients fit at once"),
        ((usual, "sweep"), swept, "the gradients of one block fit"),
        (("bfloat16", "resident"), half, "all gradients fit at once in bfloat16"),
        (("bfloat16", "sweep"), half | swept, "the gradients of one block fit in bfloat16"),
        ((usual, "offload"), discovery, "one block at a time fits"),
        (("bfloat16", "offload"), half | discovery, "one block at a time fits in bfloat16"),
    ]
    found: dict[tuple[str, str], Way] = {}
    for key, fields, why in tiers:
        if key in at and at[key].fits and key not in found:
            found[key] = spec.model_copy(update=fields), at[key], why
    return list(found.values())


def recommended(ways: Sequence[Way], rows: Sequence[PlanRow], free: int) -> tuple[str | None, str]:
    """The command line of the first way, and the reason. None if nothing fits."""
    if ways:
        asked, row, why = ways[0]
        waiting = f", and {memory_size(row.cpu_bytes)} of CPU memory" if row.cpu_bytes else ""
        return command_of(asked), f"{why}: {memory_size(_needed(row))} of {memory_size(free)}{waiting}"
    least = min(rows, key=_needed)
    waiting = f" and {memory_size(least.cpu_bytes)} of CPU memory" if least.cpu_bytes else ""
    return None, (
        f"nothing fits: {memory_size(free)} are free, and the least, {least.dtype} with {least.gradients}, needs "
        f"{memory_size(_needed(least))}{waiting}; a shorter --seq-len or a device with more memory helps"
    )


def gives_up(ways: Sequence[Way], usual: str) -> bool:
    """Whether the usual dtype does not fit on the device, so that precision, texts or time must be given up."""
    return not ways or (ways[0][1].dtype, ways[0][1].gradients) not in ((usual, "resident"), (usual, "sweep"))


def options_of(ways: Sequence[Way], with_less: Sequence[Way]) -> tuple[PlanOption, ...]:
    """The ways that fit, those on the device first, then those with less text, then those with offload."""
    on_device = [way for way in ways if way[1].gradients != "offload"]
    offloaded = [way for way in ways if way[1].gradients == "offload"]
    return tuple(
        PlanOption(command_of(asked), why, row.dtype, row.gradients, _needed(row), row.cpu_bytes)
        for asked, row, why in (*on_device, *with_less, *offloaded)
    )


def _needed(row: PlanRow) -> int:
    return row.weights_bytes + row.working_bytes
