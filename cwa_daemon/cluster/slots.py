"""How many slots a cluster has, and how large each is. Knows nothing of Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.base.errors import DoesNotFit


@dataclass(frozen=True, slots=True)
class Node:
    """What a node of the cluster has."""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Shape:
    """What a slot takes of its node, and which part of the node's slots it is."""

    cpus: float
    gpus: int
    share: float

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def slot_shapes(nodes: Sequence[Node], slots: int | None, gpus: int | None, cpus: float | None) -> list[Shape]:
    """The slots: `slots` of them, else as many as fit.

    A slot has `gpus` GPUs, one if any node has one, and `cpus` CPUs: an equal part of its node where that is not given. Without
    GPUs there is one slot on each node, or with `cpus` as many as fit. With `slots` more may be asked for than fit now, for
    nodes that are still to come. Raises DoesNotFit where not one fits and no number was given.
    """
    each = gpus if gpus is not None else int(any(node.gpus >= 1 for node in nodes))
    shapes = [shape for node in nodes for shape in _of_node(node, each, cpus, _least(nodes, slots, each, cpus))]
    if slots is None and not shapes:
        raise DoesNotFit(
            f"no node of the cluster has {_wanted(each, cpus)}; {_there(nodes)}",
            hint="ask for less (--gpus, in Python cpus), or say with --slots how many there will be",
        )
    if slots is None:
        return shapes
    more = shapes[0] if shapes else Shape(cpus or 1.0, each, 1.0)
    return (shapes + [more] * slots)[:slots]


def _least(nodes: Sequence[Node], slots: int | None, gpus: int, cpus: float | None) -> int:
    """How many slots a node without GPUs is to have, so that all together are enough."""
    return math.ceil(slots / len(nodes)) if slots and nodes and not gpus and cpus is None else 1


def _of_node(node: Node, gpus: int, cpus: float | None, least: int) -> list[Shape]:
    if gpus:
        count = int(node.gpus // gpus)
        if cpus is not None:
            count = min(count, int(node.cpus // cpus)) if cpus else count
    elif cpus is None:
        count = least if node.cpus else 0
    else:
        count = int(node.cpus // cpus) if cpus else 0
    if not count:
        return []
    own = cpus if cpus is not None else node.cpus / count
    if cpus is None and own >= 1:
        own = float(int(own))
    return [Shape(own, gpus, 1 / count)] * count


def _wanted(gpus: int, cpus: float | None) -> str:
    parts = [f"{gpus} GPUs" if gpus else "", f"{cpus:g} CPUs" if cpus else ""]
    return " and ".join(filter(None, parts)) or "a CPU"


def _there(nodes: Sequence[Node]) -> str:
    found = [f"{node.name} has {node.gpus:g} GPUs and {node.cpus:g} CPUs" for node in nodes[:5]]
    return ", ".join(found) + (f", and {len(nodes) - 5} more" if len(nodes) > 5 else "") or "there is none"
