"""The controls: sets of weights that a critical set is fairly compared with. numpy only, so draws do not depend on torch.

A selection is a map from parameter name to sorted flat indices into the stored tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwa_engine.registry import Registry, first_sentence
from cwa_engine.result import TopWeight

Indices = NDArray[np.int64]
Selection = dict[str, Indices]
Draw = Callable[[Selection, Mapping[str, int], np.random.Generator], Selection]


@dataclass(frozen=True, slots=True)
class Control:
    """`draw(critical, sizes, rng)` chooses as many weights as `critical` has; `sizes` is parameter name -> numel."""

    name: str
    draw: Draw

    @property
    def summary(self) -> str:
        """What help texts and tables say of it."""
        return first_sentence(self.draw)


CONTROLS: Registry[Control] = Registry("control")


def control(name: str) -> Callable[[Draw], Draw]:
    """Register a drawing function under `name`."""

    def register(draw: Draw) -> Draw:
        CONTROLS.add(name, Control(name, draw))
        return draw

    return register


def critical_set(weights: Iterable[TopWeight]) -> Selection:
    """The weights of a ranking as a selection."""
    by_parameter: dict[str, list[int]] = {}
    for weight in weights:
        by_parameter.setdefault(weight.parameter, []).append(weight.flat_index)
    return {name: np.array(sorted(indices), dtype=np.int64) for name, indices in by_parameter.items()}


def count(selection: Selection) -> int:
    """How many weights a selection holds."""
    return sum(len(indices) for indices in selection.values())


@control("random")
def random(critical: Selection, sizes: Mapping[str, int], rng: np.random.Generator) -> Selection:
    """Uniform over all weights of the model that are not in the critical set."""
    names = list(sizes)
    ends = np.cumsum([sizes[name] for name in names])
    starts = ends - [sizes[name] for name in names]
    taken = [critical[name] + starts[place] for place, name in enumerate(names) if name in critical]
    drawn = _draw(rng, int(ends[-1]), count(critical), np.concatenate(taken))
    owners = np.searchsorted(ends, drawn, side="right")
    return {names[owner]: drawn[owners == owner] - starts[owner] for owner in np.unique(owners)}


@control("random_matched")
def random_matched(critical: Selection, sizes: Mapping[str, int], rng: np.random.Generator) -> Selection:
    """As many weights of each parameter as the critical set has there, uniform over its other weights."""
    return {name: _draw(rng, sizes[name], len(taken), taken) for name, taken in critical.items()}


def _draw(rng: np.random.Generator, size: int, wanted: int, taken: Indices) -> Indices:
    """`wanted` different numbers below `size`, sorted, none of them in `taken`.

    Where too few others are left (a critical set of more than half a parameter) the taken ones may be drawn too.
    """
    if size - len(taken) < wanted:
        taken = np.empty(0, dtype=np.int64)
    if size <= 4 * (wanted + len(taken)):  # crowded: list what is free
        free = np.setdiff1d(np.arange(size), taken, assume_unique=True)
        return np.sort(rng.choice(free, wanted, replace=False)).astype(np.int64)
    drawn: Indices = np.empty(0, dtype=np.int64)
    while len(drawn) < wanted:  # sparse: at least half of all numbers are free, so few rounds
        fresh = rng.integers(0, size, wanted - len(drawn))
        drawn = np.setdiff1d(np.union1d(drawn, fresh), taken)
    return drawn
